"""Schemes beside http and s3: Hugging Face's hub for real, Google's up to its library."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers.hub_server import HubServer, serve_hub
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.members import MemberSpec, read_members
from shards.loading.shard_set import Storage, open_shards
from shards.storage import transfer
from shards.storage.retries import RetryPolicy
from shards.storage.shard_files import ShardFiles
from shards.storage.transfer import check_scheme

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


def test_a_data_set_of_the_hub_is_read(packed: Path, hub: HubServer, tmp_path: Path) -> None:
    shards = open_shards(
        [hub.url],
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


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("gs://bucket/set", "gcsfs", "gs"),
        ("s3://bucket/set", "s3fs", "remote"),
        ("https://host/set", "aiohttp", "remote"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> None:
        if name == library:
            raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(transfer, "import_module", without)
    with pytest.raises(ManifestError, match=rf"{library} is not installed: .*colorgan\[{extra}\]"):
        check_scheme(url)
