"""Reading one sample by offset: what comes back, and how each kind of damage is reported."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_set import (
    TinySample,
    cut_in_the_pixels,
    jpeg,
    picture,
    png,
    tiny_sample,
    write_set,
)

from shards.loading.members import BadSampleError, Members, MemberSpec, read_members
from shards.loading.shard_set import ShardSet, open_shards
from shards.storage.retries import RetryPolicy
from shards.storage.shard_files import ShardFiles

QUICK = RetryPolicy(num_tries=3, wait_s=0.001)
EVERYTHING = MemberSpec(
    classes=("cat", "dog", "owl"),
    mask=True,
    retry=QUICK,
)


@pytest.fixture(scope="module")
def samples() -> list[TinySample]:
    return [tiny_sample(index) for index in range(20)]


@pytest.fixture
def folder(tmp_path: Path, samples: list[TinySample]) -> Path:
    return write_set(tmp_path / "set", samples)


def read_one(shards: ShardSet, index: int, spec: MemberSpec = EVERYTHING) -> Members:
    files = ShardFiles()
    try:
        row = shards.rows(np.array([index]))[0]
        return read_members(shards, row, spec, files.read_at)
    finally:
        files.close()


def test_members_come_back_as_they_were_packed(folder: Path, samples: list[TinySample]) -> None:
    shards = open_shards([folder])
    for index, sample in enumerate(samples):
        members = read_one(shards, index)
        assert members.image == sample.image
        assert members.mask == sample.mask
        assert members.label is not None
        assert members.label.present.tolist() == [float(index % 3 == c) for c in range(3)]

    only_image = read_one(shards, 3, MemberSpec())
    assert only_image.label is None
    assert only_image.mask is None


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def image_offset(shards: ShardSet, index: int) -> int:
    return int(shards.rows(np.array([index]))["image_offset"][0])


def flip_a_bit(shards: ShardSet) -> None:
    path = shards.shard_paths[1]
    offset = image_offset(shards, 9) + 100
    damage(
        path,
        offset,
        bytes([path.read_bytes()[offset] ^ 4]),
    )


def cut_short(shards: ShardSet) -> None:
    path = shards.shard_paths[1]
    path.write_bytes(path.read_bytes()[: image_offset(shards, 9) + 50])


def delete(shards: ShardSet) -> None:
    shards.shard_paths[1].unlink()


def overwrite(shards: ShardSet) -> None:
    path = shards.shard_paths[1]
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_bit, "another checksum"),
        (cut_short, r"ends after 50 of \d+ bytes"),
        (delete, "cannot be read \\(No such file"),
        (overwrite, "another checksum"),
    ],
)
def test_damaged_shard(
    folder: Path,
    harm: Callable[[ShardSet], None],
    reason: str,
) -> None:
    shards = open_shards([folder])
    harm(shards)
    with pytest.raises(BadSampleError, match=f"tiny-train-000001.tar: .*{reason}"):
        read_one(shards, 9)

    other = read_one(shards, 3)
    assert zlib.crc32(other.image) == shards.rows(np.array([3]))["image_crc"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": b"garbage"}, "the image is not an intact JPEG"),
        ({"image": cut_in_the_pixels(tiny_sample(1).image)}, "the image is cut off before its end"),
        (
            {"image": jpeg(picture(0, 64, 64))},
            "the image is 64x64, the manifest has 32x32",
        ),
        (
            {"image": png(np.zeros((32, 32), np.uint8))},
            "the image is not an intact JPEG",
        ),
        ({"mask": b""}, "no mask"),
        (
            {"mask": png(np.zeros((31, 32), np.uint8))},
            "the mask is 32x31, the manifest has 32x32",
        ),
        (
            {"mask": png(np.zeros((32, 32), bool))},
            "the mask is not an 8-bit grey PNG",
        ),
        (
            {"mask": png(np.zeros((32, 32, 3), np.uint8))},
            "the mask is not an 8-bit grey PNG",
        ),
        ({"label": b"{"}, "label: "),
        ({"label": b"[]"}, "label: classes is None"),
        (
            {"label": b'{"classes": [3]}'},
            "label: classes is .3., not a list of numbers from 0 to 2",
        ),
        ({"width": 20_000, "height": 20_000}, "the image of 20000x20000 has over 134217728 pixels"),
        ({"width": 9_000, "height": 9_000}, "the image is 32x32, the manifest has 9000x9000"),
    ],
)
def test_sample_that_is_not_what_was_promised(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    """The checksums hold: a packer's mistake, or a hostile set."""
    folder = write_set(
        tmp_path / "set",
        [
            tiny_sample(0),
            replace(tiny_sample(1), **change),
        ],
    )
    shards = open_shards([folder])

    with pytest.raises(BadSampleError, match=f"tiny-train-000000.tar: {reason}"):
        read_one(shards, 1)
    read_one(shards, 0)


def test_oversized_image_is_not_even_read(folder: Path) -> None:
    shards = open_shards([folder])

    def never(path: Path, offset: int, size: int) -> bytes:
        raise AssertionError("read")

    row = shards.rows(np.array([0]))[0]
    with pytest.raises(BadSampleError, match="has over 1000 pixels"):
        read_members(shards, row, MemberSpec(max_pixels=1000), never)


@pytest.mark.parametrize("name", ["image", "label", "mask"])
def test_a_member_of_absurd_size_is_not_read(folder: Path, name: str) -> None:
    """A hostile table can promise 4 GB for one member of every sample."""
    shards = open_shards([folder])
    files = ShardFiles()
    row = shards.rows(np.array([0]))[0].copy()
    row[f"{name}_size"] = 2**32 - 1

    with pytest.raises(BadSampleError, match=f"the {name} has 4294967295 bytes"):
        read_members(shards, row, EVERYTHING, files.read_at)
    files.close()


class Stumbling:
    """Reads that fail a few times before they succeed."""

    def __init__(self, files: ShardFiles, num_failures: int) -> None:
        self.files, self.left = files, num_failures

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        if self.left:
            self.left -= 1
            raise OSError(5, "Input/output error")
        return self.files.read_at(path, offset, size)


def test_a_read_that_fails_for_a_moment_is_tried_again(
    folder: Path, samples: list[TinySample]
) -> None:
    shards = open_shards([folder])
    files = ShardFiles()
    row = shards.rows(np.array([0]))[0]
    spec = MemberSpec(retry=QUICK)

    members = read_members(
        shards,
        row,
        spec,
        Stumbling(files, 2).read_at,
    )
    assert members.image == samples[0].image
    with pytest.raises(BadSampleError, match="Input/output error"):
        read_members(shards, row, spec, Stumbling(files, 3).read_at)
    files.close()


def test_tiny_set_writes_what_tar_reads(folder: Path, samples: list[TinySample]) -> None:
    shards = open_shards([folder])
    row = shards.rows(np.array([4]))[0]
    begin = int(row["image_offset"])
    size = int(row["image_size"])
    data = shards.shard_paths[0].read_bytes()[begin : begin + size]
    assert data == samples[4].image
    assert zlib.crc32(data) == row["image_crc"]
