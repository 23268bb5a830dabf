"""Schemes beside http and s3: Hugging Face's hub and Google's storage, by their own libraries."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers.bucket_server import BucketServer, serve_bucket
from helpers.hub_server import HubServer, serve_hub
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.members import MemberSpec, read_members
from shards.loading.shard_set import Storage, open_shards
from shards.storage import transfer
from shards.storage.retries import RetryPolicy
from shards.storage.shard_files import ShardFiles
from shards.storage.transfer import Promise, TransferError, check_scheme

QUICK = RetryPolicy(num_tries=2, wait_s=0.01, stall_s=5.0, base_s=30.0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [tiny_sample(index) for index in range(20)]
    return write_set(tmp_path_factory.mktemp("packed") / "set", samples)


@pytest.fixture
def hub(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_hub(packed) as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})
        yield server


@pytest.fixture
def bucket(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    gcsfs = pytest.importorskip("gcsfs")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_bucket(packed) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        # A file system that an earlier test has opened would still ask that test's server.
        gcsfs.core.GCSFileSystem.clear_instance_cache()
        yield server


@pytest.mark.parametrize("server", ["hub", "bucket"])
def test_a_set_is_read_from_its_url(
    packed: Path, server: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(server).url
    shards = open_shards(
        [url],
        Storage(tmp_path / "cache", 1.0, retry=QUICK),
    )
    assert shards.digest == open_shards([packed]).digest

    files = ShardFiles()
    for index, row in enumerate(shards.rows(np.arange(20))):
        members = read_members(shards, row, MemberSpec(retry=QUICK), files.read_at)
        assert members.image == tiny_sample(index).image
    files.close()


def test_a_folder_that_the_hub_does_not_have_is_reported(hub: HubServer, tmp_path: Path) -> None:
    url = "hf://datasets/nobody/nothing/set"
    with pytest.raises(ManifestError, match=rf"{url}/manifest.json: cannot be fetched"):
        open_shards([url], Storage(tmp_path / "cache", 1.0, retry=QUICK))


def test_a_bucket_is_read_in_blocks_and_what_it_lacks_is_reported_at_once(
    packed: Path, bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BLOCK", 1000)
    size = (packed / "manifest.json").stat().st_size
    got = tmp_path / "got"
    transfer.fetch_into(f"{bucket.url}/manifest.json", lambda: got.open("wb"), Promise(size), QUICK)
    assert got.read_bytes() == (packed / "manifest.json").read_bytes()
    assert bucket.requests["manifest.json"] == -(-size // 1000)

    for url in (f"{bucket.url}/else.json", "gs://nowhere/set/manifest.json"):
        with pytest.raises(TransferError, match=rf"{url}.*no such file there; try 1\)"):
            transfer.fetch_into(url, lambda: got.open("wb"), Promise(size), QUICK)


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_refuses_is_reported_at_once_with_where_keys_are_looked_for(
    bucket: BucketServer, status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket.status = status
    with pytest.raises(ManifestError, match=r"application default credentials; try 1\)"):
        open_shards([bucket.url], Storage(tmp_path / "cache", 1.0, retry=QUICK))
    # The library prints a traceback of its own, unless it is kept from it.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("url", "library"),
    [("gs://bucket/set", "gcsfs"), ("s3://bucket/set", "s3fs"), ("https://host/set", "aiohttp")],
)
def test_a_missing_library_is_named_with_what_installs_it(
    url: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> None:
        if name == library:
            raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(transfer, "import_module", without)
    with pytest.raises(
        ManifestError, match=rf"{library} is not installed: pip install '.*{library}"
    ):
        check_scheme(url)
