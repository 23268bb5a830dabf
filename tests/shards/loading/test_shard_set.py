"""Reading by offset: what comes back, and what each kind of damage is called."""

import json
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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

from shards.errors import ManifestError
from shards.images.headers import Header, jpeg_header, mask_header
from shards.loading.labels import class_vectors
from shards.loading.members import BadSampleError, Members, MemberSpec, read_members
from shards.loading.read_ahead import ReadAhead
from shards.loading.shard_set import ShardSet, open_shards
from shards.storage.shard_files import ShardFiles

EVERYTHING = MemberSpec(num_classes=3, mask=True, retry_wait_s=0.001)


@pytest.fixture(scope="module")
def samples() -> list[TinySample]:
    return [tiny_sample(index) for index in range(20)]


@pytest.fixture
def folder(tmp_path: Path, samples: list[TinySample]) -> Path:
    return write_set(tmp_path / "set", samples)


def read_one(
    shards: ShardSet, index: int, wanted: MemberSpec = EVERYTHING, files: ShardFiles | None = None
):
    row = shards.rows(np.array([index]))[0]
    return read_members(shards, row, wanted, (files or ShardFiles()).read_at)


def test_members_come_back_as_they_were_packed(folder: Path, samples: list[TinySample]) -> None:
    shards = open_shards([folder])
    files = ShardFiles(max_open=1)
    for index, sample in enumerate(samples):
        members = read_one(shards, index, files=files)
        assert (members.image, members.mask) == (sample.image, sample.mask)
        assert members.label is not None
        assert members.label.present.tolist() == [float(index % 3 == c) for c in range(3)]
    only_picture = read_one(shards, 3, MemberSpec())
    assert (only_picture.label, only_picture.mask) == (None, None)


def test_several_folders_are_one_set(
    tmp_path: Path, folder: Path, samples: list[TinySample]
) -> None:
    other = write_set(
        tmp_path / "other", samples[5:11], classes=(), with_masks=False, samples_per_shard=4
    )
    shards = open_shards([folder, other])
    assert shards.num_samples == 26
    assert shards.shard_sizes == [8, 8, 4, 4, 2]
    assert shards.classes == ("cat", "dog", "owl")
    assert not shards.has_masks and not shards.same_classes()
    assert shards.digest not in (open_shards([folder]).digest, open_shards([other, folder]).digest)
    rows = shards.rows(np.array([25, 0, 20, 19]))
    assert rows["shard"].tolist() == [4, 0, 3, 2]
    assert read_one(shards, 25, MemberSpec()).image == samples[10].image


def test_no_folder_or_one_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no packed folder given"):
        open_shards([])
    with pytest.raises(ManifestError, match="given twice"):
        open_shards([folder, folder / ".." / folder.name])


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip_a_bit(folder: Path, shards: ShardSet) -> None:
    offset = int(shards.rows(np.array([9]))["image_offset"][0]) + 100
    path = shards.shard_paths[1]
    damage(path, offset, bytes([path.read_bytes()[offset] ^ 4]))


def cut_short(folder: Path, shards: ShardSet) -> None:
    path = shards.shard_paths[1]
    path.write_bytes(path.read_bytes()[: int(shards.rows(np.array([9]))["image_offset"][0]) + 50])


def delete(folder: Path, shards: ShardSet) -> None:
    shards.shard_paths[1].unlink()


def replace_by_another(folder: Path, shards: ShardSet) -> None:
    shards.shard_paths[1].write_bytes(bytes(shards.shard_paths[1].stat().st_size))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_bit, "another checksum"),
        (cut_short, r"ends after 50 of \d+ bytes"),
        (delete, "cannot be read \\(No such file"),
        (replace_by_another, "another checksum"),
    ],
)
def test_damaged_shard(folder: Path, harm: Callable[[Path, ShardSet], None], reason: str) -> None:
    shards = open_shards([folder])
    harm(folder, shards)
    with pytest.raises(BadSampleError, match=f"tiny-train-000001.tar: .*{reason}"):
        read_one(shards, 9)
    read_one(shards, 3)  # the other shards are as good as before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": b"garbage"}, "picture is no 8-bit JPEG"),
        ({"image": jpeg(picture(0, 64, 64))}, "picture is 64x64, the manifest says 32x32"),
        ({"image": png(np.zeros((32, 32), np.uint8))}, "picture is no 8-bit JPEG"),
        ({"mask": b""}, "no mask"),
        ({"mask": png(np.zeros((31, 32), np.uint8))}, "mask is 32x31, the manifest says 32x32"),
        ({"mask": png(np.zeros((32, 32), bool))}, "mask is no 8-bit grey PNG"),
        ({"mask": png(np.zeros((32, 32, 3), np.uint8))}, "mask is no 8-bit grey PNG"),
        ({"label": b"{"}, "label: "),
        ({"label": b"[]"}, "label: classes is None"),
        ({"label": b'{"classes": [3]}'}, "label: classes is .3., no list of numbers from 0 to 2"),
        ({"width": 20_000, "height": 20_000}, "picture is 32x32, the manifest says 20000x20000"),
    ],
)
def test_sample_that_is_not_what_was_promised(tmp_path: Path, change: dict, reason: str) -> None:
    """The checksums hold: this is a packer's mistake, or a hostile set."""
    folder = write_set(tmp_path / "set", [tiny_sample(0), replace(tiny_sample(1), **change)])
    shards = open_shards([folder])
    with pytest.raises(BadSampleError, match=f"tiny-train-000000.tar: {reason}"):
        read_one(shards, 1)
    read_one(shards, 0)


def test_oversized_picture_is_not_decoded(folder: Path) -> None:
    with pytest.raises(BadSampleError, match="has over 1000 pixels"):
        read_one(open_shards([folder]), 0, MemberSpec(max_pixels=1000))


def test_a_read_that_fails_for_a_moment_is_tried_again(
    folder: Path, samples: list[TinySample]
) -> None:
    shards, files, failures = open_shards([folder]), ShardFiles(), []

    def stumbling(path: Path, offset: int, size: int) -> bytes:
        if len(failures) < 2:
            failures.append(offset)
            raise OSError(5, "Input/output error")
        return files.read_at(path, offset, size)

    row = shards.rows(np.array([0]))[0]
    assert (
        read_members(shards, row, MemberSpec(retry_wait_s=0.001), stumbling).image
        == samples[0].image
    )
    failures.clear()
    with pytest.raises(BadSampleError, match="Input/output error"):
        read_members(shards, row, MemberSpec(num_tries=2, retry_wait_s=0.001), stumbling)


def test_few_files_stay_open_under_many_threads(folder: Path, samples: list[TinySample]) -> None:
    shards, files = open_shards([folder]), ShardFiles(max_open=2)
    most = 0

    def counting(path: Path, offset: int, size: int) -> bytes:
        nonlocal most
        data = files.read_at(path, offset, size)
        most = max(most, len(files._open))
        return data

    reads = ReadAhead(shards, MemberSpec(), 4, counting)
    ids = np.random.default_rng(0).integers(0, 20, 400)
    results = reads.read(ids).collect()
    reads.close()
    assert [result.image for result in results] == [samples[i].image for i in ids]
    assert most <= 2 + 4  # a file in use is not closed
    files.close()
    assert not files._open


def test_stalled_read_is_given_up_and_the_others_go_on(folder: Path) -> None:
    shards, files, release = open_shards([folder]), ShardFiles(), threading.Event()
    stalled = int(shards.rows(np.array([2]))["image_offset"][0])

    def stalling(path: Path, offset: int, size: int) -> bytes:
        if offset == stalled and path == shards.shard_paths[0]:
            release.wait(30)
        return files.read_at(path, offset, size)

    reads = ReadAhead(shards, MemberSpec(timeout_s=0.3), 1, stalling)
    begin = time.perf_counter()
    results = reads.read(np.arange(8)).collect()
    assert time.perf_counter() - begin < 5
    assert isinstance(results[2], BadSampleError) and "nothing read for 0.3 s" in str(results[2])
    assert all(isinstance(result, Members) for at, result in enumerate(results) if at != 2)
    release.set()
    reads.close()


def test_reader_that_raises_anything_is_a_bad_sample(folder: Path) -> None:
    def broken(path: Path, offset: int, size: int) -> bytes:
        raise RuntimeError("disk on fire")

    reads = ReadAhead(open_shards([folder]), MemberSpec(), 2, broken)
    (result,) = reads.read(np.array([0])).collect()
    reads.close()
    assert isinstance(result, BadSampleError) and "disk on fire" in str(result)


def test_headers() -> None:
    assert jpeg_header(jpeg(picture(1, 40, 56))) == Header(56, 40, 8, 3)
    assert jpeg_header(jpeg(picture(1, 8, 9)[..., 0])) == Header(9, 8, 8, 1)
    assert jpeg_header(cut_in_the_pixels(jpeg(picture(1, 8, 9)))) == Header(9, 8, 8, 3)
    assert mask_header(png(np.zeros((5, 6), np.uint8))) == Header(6, 5, 8, 1)


def test_broken_headers_are_none() -> None:
    whole = jpeg(picture(1, 40, 56))
    scan = whole.index(b"\xff\xda")
    for end in range(0, scan, 7):
        assert jpeg_header(whole[:end]) is None
        assert jpeg_header(whole[:end] + b"x" * 1000) is None
    frame = whole.index(b"\xff\xc0")
    assert jpeg_header(whole[:frame] + b"\xff\xc3" + whole[frame + 2 :]) is None  # lossless
    assert (
        jpeg_header(whole[:frame] + whole[frame : frame + 19] + whole[frame:]) is None
    )  # two frames
    assert jpeg_header(b"\xff\xd8" + b"\xff\xe1\x00\x02Exif\0\0" + whole[2:]) is None
    assert jpeg_header(b"\xff\xd8" + b"\xff" * 5 + whole[2:]) == Header(
        56, 40, 8, 3
    )  # fill bytes are legal
    mask = png(np.zeros((5, 6), np.uint8))
    for end in range(len(mask) - 12):
        assert mask_header(mask[:end]) is None
    assert mask_header(mask[:33] + b"\xff\xff\xff\xffIDAT" + mask[41:]) is None
    assert mask_header(mask[:33] + b"\0\0\0\0eXIf\0\0\0\0" + mask[33:]) is None


def test_class_vectors() -> None:
    objects = [
        {"class": 0, "difficult": True},
        {"class": 0, "difficult": False},
        {"class": 2, "difficult": True},
    ]
    vectors = class_vectors(json.dumps({"classes": [0, 2], "objects": objects}).encode(), 4)
    assert vectors.present.tolist() == [1, 0, 1, 0]
    assert vectors.difficult.tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="an object of class 9"):
        class_vectors(b'{"classes": [0], "objects": [{"class": 9}]}', 4)


def test_tiny_set_writes_what_tar_reads(folder: Path, samples: list[TinySample]) -> None:
    shards = open_shards([folder])
    row = shards.rows(np.array([4]))[0]
    data = shards.shard_paths[0].read_bytes()[int(row["image_offset"]) :][: int(row["image_size"])]
    assert data == samples[4].image and zlib.crc32(data) == row["image_crc"]
