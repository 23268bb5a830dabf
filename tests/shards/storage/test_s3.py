"""Shards behind s3://, read from a real S3 interface: moto's server on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import pytest
import torch
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.loader import Loader
from shards.loading.shard_set import Storage, open_shards

pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install colorgan[remote]")
moto = pytest.importorskip("moto.server", reason="the S3 server needs moto, flask and flask-cors")

NUM_SAMPLES = 40


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [tiny_sample(index) for index in range(NUM_SAMPLES)]
    return write_set(tmp_path_factory.mktemp("packed") / "set", samples)


@pytest.fixture(scope="module")
def bucket(packed: Path) -> Iterator[str]:
    """Return the packed folder's URL in a bucket; the environment names the server."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "testing",
        "SECRET_ACCESS_KEY": "testing",
    }

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        for name, value in {**words, "DEFAULT_REGION": "us-east-1"}.items():
            environment.setenv(f"AWS_{name}", value)
        # A file system that an earlier test has opened would still ask that test's server.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("photos", acl="public-read")
        files.put(
            str(packed) + "/",
            "photos/set/",
            recursive=True,
            ACL="public-read",
        )
        files.mkdir("private")
        files.put(str(packed / "manifest.json"), "private/set/manifest.json")
        yield "s3://photos/set"

    server.stop()


def batches(folder: Path | str, cache: Path) -> list[torch.Tensor]:
    """Return the samples of two epochs, in their order."""
    shards = open_shards([folder], Storage(cache, 0.1))
    loader = Loader(
        shards,
        image_size=32,
        global_batch_size=8,
        micro_batch_size=8,
        seed=3,
    )
    steps = loader.train_batches(0)
    found = [next(steps)[0].lab_B3HW for _ in range(2 * NUM_SAMPLES // 8)]
    loader.close()

    return found


def test_a_bucket_gives_what_the_folder_gives(packed: Path, bucket: str, tmp_path: Path) -> None:
    """Bit for bit, in the announced order; the shards stay cached for a second run."""
    expected = batches(packed, tmp_path / "unused")
    for _ in range(2):
        found = batches(bucket, tmp_path / "cache")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    kept = {path.name for path in (tmp_path / "cache").rglob("*.tar")}
    assert kept == {path.name for path in packed.glob("*.tar")}


@pytest.mark.parametrize("url", ["s3://nowhere/set", "s3://photos/else"])
def test_what_is_not_there_is_told_in_a_sentence(bucket: str, tmp_path: Path, url: str) -> None:
    assert bucket != url
    with pytest.raises(ManifestError, match=url):
        open_shards([url], Storage(tmp_path / "cache", 0.1))


@pytest.fixture
def without_keys(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.filesystem("s3").clear_instance_cache()
    return bucket


def test_a_public_bucket_needs_no_keys(packed: Path, without_keys: str, tmp_path: Path) -> None:
    shards = open_shards(
        [without_keys],
        Storage(tmp_path / "cache", 0.1),
    )
    assert shards.digest == open_shards([packed]).digest


def test_missing_keys_of_a_private_bucket_are_reported_at_once(
    without_keys: str, tmp_path: Path
) -> None:
    """Not after all tries, and with where keys are looked for."""
    assert without_keys
    with pytest.raises(ManifestError, match=r"s3://private/set.*AWS_ACCESS_KEY_ID.*try 1\)"):
        open_shards(["s3://private/set"], Storage(tmp_path / "cache", 0.1))


def test_refused_keys_are_told_at_once(bucket: str, tmp_path: Path) -> None:
    """The server asks for keys from here on, and knows none."""
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        count_without_keys("0")
        with pytest.raises(ManifestError, match=rf"{bucket}.*AWS_ACCESS_KEY_ID.*try 1\)"):
            open_shards([bucket], Storage(tmp_path / "cache", 0.1))
    finally:
        count_without_keys("inf")


def count_without_keys(count: str) -> None:
    """Tell the server how many further requests it answers without looking at their keys."""
    url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    urlopen(
        Request(
            url,
            data=count.encode(),
            headers={"Content-Type": "text/plain"},
        )
    ).close()
