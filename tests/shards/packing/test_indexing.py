"""Indexing shards made elsewhere: what is taken or left out, and that loading reads it."""

import gc
import io
import json
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.http_server import serve
from helpers.tiny_set import picture
from PIL import Image

from shards.errors import ManifestError, PackError
from shards.foreign_labels import class_indices, read_names
from shards.loading.loader import Loader
from shards.loading.samples import Samples
from shards.loading.shard_set import open_shards
from shards.manifest import Manifest, read_manifest
from shards.packing.indexing import index_shards
from shards.packing.report import VerifyTally, index_lines
from shards.packing.shard_list import list_shards
from shards.packing.verifying import verify
from shards.rejections import read_rejections

Members = Sequence[tuple[str, bytes]]


def photo(index: int, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(index, 24, 32)).save(
        stream,
        kind,
        **options,
    )
    return stream.getvalue()


def write_tar(path: Path, members: Members, tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1234567890.5  # type: ignore[assignment]  # as the webdataset library writes it
            tar.addfile(info, io.BytesIO(data))
    return path


def webdataset_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """As imagenet-wds has them: jpg, cls and json per key."""
    members = []

    for index in range(first, first + count):
        label = {
            "label": index % 3,
            "wnid": f"n{index % 3:02d}",
            "nested": {"ids": [index % 3]},
        }
        members += [
            (
                f"s{index:04d}.jpg",
                photo(index),
            ),
            (
                f"s{index:04d}.cls",
                str(index % 3).encode(),
            ),
            (
                f"s{index:04d}.json",
                json.dumps(label).encode(),
            ),
        ]

    return members


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of 5 and 4 samples."""
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(
        shards / "a-000000.tar",
        webdataset_members(0, 5),
    )
    write_tar(
        shards / "a-000001.tar",
        webdataset_members(5, 4),
    )

    return shards


def index(shards: Path | str, out: Path, **settings: Any) -> Manifest:
    return index_shards(
        str(shards),
        out,
        workers=0,
        **settings,
    ).manifest


def images_of(manifest: Manifest) -> list[bytes]:
    """Return the image member of each sample, by the table's offsets."""
    images = []
    for row in manifest.samples():
        path = manifest.shard_path(manifest.shards[row["shard"]])
        start = int(row["image_offset"])
        images.append(path.read_bytes()[start : start + int(row["image_size"])])
    return images


def test_nothing_is_copied_and_every_image_is_where_the_table_has_it(
    folder: Path, tmp_path: Path
) -> None:
    manifest = index(folder, tmp_path / "out")

    assert images_of(manifest) == [photo(number) for number in range(9)]
    assert [shard.samples for shard in manifest.shards] == [5, 4]
    assert [shard.location for shard in manifest.shards] == [
        str(folder / f"a-00000{number}.tar") for number in range(2)
    ]
    assert not list((tmp_path / "out").glob("*.tar"))
    assert set(manifest.samples()["width"]) == {32}
    assert set(manifest.samples()["height"]) == {24}
    assert manifest.is_indexed
    assert manifest.classes == ()
    assert manifest.image_formats == ("jpeg",)
    assert read_manifest(tmp_path / "out") == manifest
    assert all(check.is_good for check in verify(tmp_path / "out", workers=0))


@pytest.mark.parametrize(
    ("label_format", "classes"),
    [
        ("cls", ("0", "1", "2")),
        ("json:label", ("0", "1", "2")),
        ("json:wnid", ("n00", "n01", "n02")),
        ("json:nested.ids", ("0", "1", "2")),
    ],
)
def test_labels_are_read_where_they_are_asked_for(
    folder: Path, tmp_path: Path, label_format: str, classes: tuple[str, ...]
) -> None:
    manifest = index(
        folder,
        tmp_path / "out",
        label_format=label_format,
    )
    assert manifest.classes == classes
    assert manifest.label_format == label_format

    for number, row in enumerate(manifest.samples()):
        path = manifest.shard_path(manifest.shards[row["shard"]])
        start = int(row["label_offset"])
        size = int(row["label_size"])
        content = path.read_bytes()[start : start + size]
        assert class_indices(content, label_format, classes) == [number % 3]


def test_loading_reads_an_indexed_set_on_any_number_of_ranks(folder: Path, tmp_path: Path) -> None:
    index(
        folder,
        tmp_path / "out",
        label_format="cls",
    )
    shards = open_shards([tmp_path / "out"])

    settings: dict[str, Any] = {
        "image_size": 16,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "seed": 1,
        "targets": "classes",
    }

    def steps(world_size: int, images_seen: int, count: int) -> list[int]:
        """Return the samples of some global batches, in order, of all ranks together."""
        ids: list[list[int]] = [[] for _ in range(count)]

        for rank in range(world_size):
            loader = Loader(
                shards,
                rank=rank,
                world_size=world_size,
                **settings,
            )
            for step, batches in enumerate(islice(loader.train_batches(images_seen), count)):
                for batch in batches:
                    assert batch.classes_BC is not None
                    assert batch.classes_BC.shape[1] == 3
                    hot = batch.classes_BC.argmax(1).tolist()
                    assert hot == [number % 3 for number in batch.sample_ids_B.tolist()]
                    ids[step] += batch.sample_ids_B.tolist()
            loader.close()

        return [number for step in ids for number in step]

    alone = steps(1, 0, 9)
    assert sorted(alone[:9]) == sorted(alone[9:18]) == list(range(9))
    assert steps(2, 0, 9) == alone
    assert steps(2, 16, 5) == alone[16:]


def test_images_of_other_formats_and_names(tmp_path: Path) -> None:
    members = [
        ("n01/one.JPEG", photo(0)),
        ("two.jpeg", photo(1)),
        ("three.png", photo(2, "PNG")),
        ("three.txt", b"a caption"),
        ("four.webp", photo(3, "WEBP")),
        ("0.5.jpg", photo(4)),
        ("0.7.jpg", photo(5)),
        ("key.v2.jpg", photo(6)),
        ("__meta__", photo(7)),
        ("readme", b"no ending"),
    ]
    write_tar(tmp_path / "x.tar", members)
    manifest = index(
        tmp_path / "x.tar",
        tmp_path / "out",
    )
    expected = [
        photo(0),
        photo(1),
        photo(2, "PNG"),
        photo(3, "WEBP"),
        photo(4),
        photo(5),
        photo(6),
    ]

    assert images_of(manifest) == expected
    assert manifest.image_formats == ("jpeg", "png", "webp")
    assert [each.key for each in read_rejections(tmp_path / "out" / "rejected.jsonl")] == ["readme"]


UNUSABLE = {
    "cmyk": (
        [("k.jpg", lambda: cmyk())],
        "CMYK, so it needs packing",
    ),
    "cut": (
        [
            (
                "k.jpg",
                lambda: photo(0)[:200],
            )
        ],
        "cannot be decoded",
    ),
    "text": ([("k.jpg", lambda: b"<html>")], "an HTML page"),
    "empty": ([("k.jpg", lambda: b"")], "empty file"),
    "no image": (
        [
            ("k.cls", lambda: b"1"),
            ("k.txt", lambda: b"x"),
        ],
        "no jpg, jpeg, png or webp",
    ),
    "no label": (
        [("k.jpg", lambda: photo(0))],
        "no cls member",
    ),
    "label": (
        [
            ("k.jpg", lambda: photo(0)),
            ("k.cls", lambda: b""),
        ],
        "its label is empty",
    ),
}


def cmyk() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(0, 24, 32)).convert("CMYK").save(
        stream,
        "JPEG",
    )
    return stream.getvalue()


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_samples_are_named_with_their_reason(tmp_path: Path, kind: str) -> None:
    members, reason = UNUSABLE[kind]
    bad = [(name, make()) for name, make in members]
    write_tar(
        tmp_path / "x.tar",
        [*webdataset_members(0, 2), *bad],
    )

    manifest = index(
        tmp_path / "x.tar",
        tmp_path / "out",
        label_format="cls",
    )
    assert (
        manifest.num_samples,
        manifest.num_rejected,
    ) == (2, 1)
    (rejection,) = read_rejections(tmp_path / "out" / "rejected.jsonl")
    assert rejection.key == "k"
    assert reason in rejection.reason
    summary = manifest.summary()
    assert summary is not None
    assert sum(each.count for each in summary.left_out.values()) == 1


def test_members_that_are_passed_over_are_counted_by_reason(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("1.jpg", "1.jpg", "noext", "5.jpg", "5.png"):
            info = tarfile.TarInfo(name)
            info.size = len(photo(1))
            tar.addfile(info, io.BytesIO(photo(1)))
        for name, kind in (("4.jpg", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("6.jpg")
        info.size, info.pax_headers = len(photo(1)), {"GNU.sparse.major": "1"}
        tar.addfile(info, io.BytesIO(photo(1)))

    manifest = index(tmp_path / "x.tar", tmp_path / "out")
    summary = manifest.summary()
    assert summary is not None
    counts = {reason: each.examples for reason, each in summary.left_out.items()}
    assert counts == {
        "a second image of one sample": ("1.jpg", "5.png"),
        "a file without an ending, such as .jpg, in its name": ("noext",),
        "a link in the tar, which has no data of its own to read": ("4.jpg",),
        "a sparse file in the tar, which has no data of its own to read": ("6.jpg",),
    }
    assert manifest.num_samples == 2
    assert manifest.num_rejected == 0, "it counts samples"
    assert all(check.is_good for check in verify(tmp_path / "out", workers=0))


def test_files_without_endings_are_the_named_reason_of_an_empty_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("0001", photo(1))])
    with pytest.raises(PackError, match=r"in 1 shard, .*: a file without an ending"):
        index(tmp_path / "x.tar", tmp_path / "out")
    assert [each.key for each in read_rejections(tmp_path / "out" / "rejected.jsonl")] == ["0001"]


def test_a_number_below_zero_costs_its_sample_alone(tmp_path: Path) -> None:
    stray = [("k.jpg", photo(7)), ("k.cls", b"-1")]
    write_tar(tmp_path / "x.tar", [*webdataset_members(0, 3), *stray])
    manifest = index(tmp_path / "x.tar", tmp_path / "out", label_format="cls")
    assert manifest.classes == ("0", "1", "2")
    (rejection,) = read_rejections(tmp_path / "out" / "rejected.jsonl")
    assert rejection.reason == "its label is not from 0 to 99999: -1"


def test_names_among_numbers_are_left_out_once_the_classes_are_named(
    folder: Path, tmp_path: Path
) -> None:
    stray = [("k.jpg", photo(7)), ("k.cls", b"unknown")]
    write_tar(folder / "b.tar", [*webdataset_members(0, 3), *stray])
    out = tmp_path / "out"
    with pytest.raises(PackError, match=r"\(unknown\) and numbers in others \(up to 2\); .*--cl"):
        index(folder, out, label_format="cls")

    read: list[int] = []
    names = ("a", "b", "c")
    report = index_shards(
        str(folder),
        out,
        label_format="cls",
        classes=names,
        workers=0,
        progress=lambda samples, _: read.append(samples),
    )
    assert read == [4], "only the shard with the other label is read again"
    assert report.manifest.classes == names
    (rejection,) = read_rejections(out / "rejected.jsonl")
    assert rejection.reason == "its label is none of the 3 classes: 'unknown'"
    fresh = index(folder, tmp_path / "fresh", label_format="cls", classes=names)
    assert report.manifest.digest == fresh.digest
    # Once it is finished, its classes stay.
    with pytest.raises(PackError, match="other classes"):
        index(folder, out, label_format="cls", classes=("a", "b", "d"))


def test_states_of_other_named_classes_are_read_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PackError, match=r"no usable sample in 2 shards, .*its label is none of"):
        index(folder, out, label_format="json:wnid", classes=("x", "y"))
    named = ("n00", "n01", "n02")
    assert index(folder, out, label_format="json:wnid", classes=named).num_samples == 9


def test_a_shard_that_has_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = index(folder, out)
    size = (folder / "a-000001.tar").stat().st_size
    write_tar(folder / "a-000001.tar", webdataset_members(20, 4))
    assert (folder / "a-000001.tar").stat().st_size == size
    status = (folder / "a-000001.tar").stat()
    os.utime(folder / "a-000001.tar", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))

    report = index_shards(str(folder), out, workers=0)
    assert not report.was_finished
    assert report.manifest.digest != before.digest
    assert all(check.is_good for check in verify(out, workers=0))

    write_tar(folder / "a-000001.tar", webdataset_members(20, 5))
    os.utime(folder / "a-000001.tar", ns=(0, 0))
    assert index(folder, out).num_samples == 10
    assert index_shards(str(folder), out, workers=0).was_finished


def test_a_cut_shard_costs_itself_alone(folder: Path, tmp_path: Path) -> None:
    cut = folder / "a-000001.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    manifest = index(folder, tmp_path / "out")
    assert [shard.file for shard in manifest.shards] == ["a-000000.tar"]
    (rejection,) = read_rejections(tmp_path / "out" / "rejected.jsonl")
    assert rejection.source == str(cut)
    assert "ends" in rejection.reason


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_names_in_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    name = f"{'d' * 90}/{'n' * 60}.jpg"
    write_tar(
        tmp_path / "x.tar",
        [
            (name, photo(0)),
            ("b.jpg", photo(1)),
        ],
        tar_format,
    )
    manifest = index(
        tmp_path / "x.tar",
        tmp_path / "out",
    )

    assert images_of(manifest) == [photo(0), photo(1)]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, "v7"])
def test_keys_are_whole_in_every_tar_format(tmp_path: Path, tar_format: int | str) -> None:
    long = "/".join(f"a_folder_with_a_long_name_{number}" for number in range(6))
    names = ["1.jpg"] if tar_format == "v7" else ["1.jpg", f"{long}/2.jpg", f"{long}/3.x.jpg"]
    members = [(name, photo(number)) for number, name in enumerate(names)]
    kind = tar_format if isinstance(tar_format, int) else tarfile.USTAR_FORMAT
    path = write_tar(tmp_path / "x.tar", members, kind)
    if tar_format == "v7":
        # Without magic and prefix, with the checksum of that.
        content = bytearray(path.read_bytes())
        content[257:512] = bytes(255)
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        path.write_bytes(content)
    index(path, tmp_path / "out")
    samples = Samples(open_shards([tmp_path / "out"]))
    keys = [samples.key(number) for number in range(len(samples))]
    samples.close()
    assert keys == ["1", f"{long}/2", f"{long}/3"][: len(names)]


def test_an_interrupted_call_continues_and_another_request_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(samples: int, left_out: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_shards(
            str(folder),
            tmp_path / "out",
            workers=0,
            progress=stop,
        )
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(PackError, match="another request"):
        index(
            folder,
            tmp_path / "out",
            label_format="cls",
        )

    counts: list[int] = []
    index_shards(
        str(folder), tmp_path / "out", workers=0, progress=lambda done, _: counts.append(done)
    )
    assert counts == [4], "the first shard was read before"
    assert index_shards(
        str(folder),
        tmp_path / "out",
        workers=0,
    ).was_finished
    fresh = index(folder, tmp_path / "fresh")
    assert fresh.digest == read_manifest(tmp_path / "out").digest


def test_workers_change_nothing(folder: Path, tmp_path: Path) -> None:
    one = index(folder, tmp_path / "one")
    two = index_shards(
        str(folder),
        tmp_path / "two",
        workers=2,
    ).manifest
    assert one.digest == two.digest


def test_shards_behind_a_url(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with serve(folder) as server:
        pattern = f"{server.url}/a-{{000000..000001}}.tar"
        manifest = index(pattern, tmp_path / "out")
        assert [shard.location for shard in manifest.shards] == [
            f"{server.url}/a-00000{number}.tar" for number in range(2)
        ]
        assert all(shard.is_remote for shard in manifest.shards)
        assert all(check.is_good for check in verify(tmp_path / "out", workers=0))
        assert not list((tmp_path / "out").rglob("*.tar"))
    rows = index(folder, tmp_path / "local").samples()

    assert rows.tolist() == manifest.samples().tolist()


def test_a_shard_that_was_away_is_named_and_added_by_the_same_command(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    out = tmp_path / "out"
    with serve(folder) as server:
        pattern = f"{server.url}/a-{{000000..000001}}.tar"
        # A shard is asked for once per call: 404 is final.
        server.faults["a-000001.tar"] = deque([404, 404])
        for was_finished in (False, True):
            report = index_shards(pattern, out, workers=0)
            assert report.was_finished is was_finished
            assert len(report.manifest.shards) == 1
            lines = "\n".join(index_lines(report, out, "train OUT"))
            assert "not in the set: 1 of its shards" in lines
            assert f"  {server.url}/a-000001.tar: cannot be fetched (no such file there" in lines
            assert "1 the whole shard" in lines

        requests = server.requests["a-000000.tar"]
        report = index_shards(pattern, out, workers=0)
        assert not report.was_finished and not report.unreadable
        assert server.requests["a-000000.tar"] == requests, "the good one is not read again"
        assert report.manifest.num_rejected == 0
        assert not (out / ".packing").exists()
        assert index_shards(pattern, out, workers=0).was_finished

        # Taken away after that, it is no damage, and verifying says so.
        server.faults["a-000001.tar"] = deque([404])
        checks = VerifyTally()
        assert len(list(checks.lines(verify(out, workers=0)))) == 1
        with pytest.raises(ManifestError, match=r"1 of its shards could not be read, .*a-000001"):
            checks.raise_if_damaged(out, "pack")
        index(pattern, tmp_path / "at-once")
    assert report.manifest.digest == read_manifest(tmp_path / "at-once").digest


def test_a_shard_that_was_mended_is_added_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    second = folder / "a-000001.tar"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2 + 100])
    report = index_shards(
        str(folder),
        tmp_path / "out",
        workers=0,
    )
    assert len(report.unreadable) == 1
    assert len(report.manifest.shards) == 1

    second.write_bytes(content)
    # An index of an earlier version kept no states.
    shutil.rmtree(tmp_path / "out" / ".packing")
    report = index_shards(
        str(folder),
        tmp_path / "out",
        workers=0,
    )
    assert not report.unreadable
    assert len(report.manifest.shards) == 2


def test_damage_after_indexing_is_found(folder: Path, tmp_path: Path) -> None:
    manifest = index(folder, tmp_path / "out")
    row = manifest.samples()[6]
    shard = folder / "a-000001.tar"
    data = bytearray(shard.read_bytes())
    data[int(row["image_offset"]) + 50] ^= 1
    shard.write_bytes(data)
    (check,) = [check for check in verify(tmp_path / "out", workers=0) if not check.is_good]

    assert [bad.index for bad in check.bad_samples] == [6]
    assert "checksum differs" in str(check.bad_samples[0])


def test_where_shards_are(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / f"a-00000{number}.tar") for number in range(2)]
    patterns = (
        str(folder),
        f"{folder}/*.tar",
        f"{folder}/a-{{000000..000001}}.tar",
        f"{paths[0]}::{paths[1]}",
        f"{folder}::{paths[0]}",
    )
    for pattern in patterns:
        assert [source.location for source in list_shards(pattern)] == paths, pattern

    (folder / "more.tar.gz").write_bytes(b"")
    caf = tmp_path / "caf"
    caf.mkdir()
    (caf / "caf\udce9.tar").write_bytes(b"")
    for pattern, words in (
        (f"{tmp_path}/none-*.tar", "no such file"),
        (f"{folder}/more.tar.gz", "compressed"),
        ("pipe:curl x", "not run"),
        ("ftp://host/x.tar", "ftp:// is not supported"),
        ("https://host/x.tar?download=true", "no user, password or query"),
        ("https://user:secret@host/x.tar", "no user, password or query"),
        (f"{caf}/*.tar", r"xe9.tar: its name is not UTF-8"),
    ):
        with pytest.raises((PackError, ManifestError), match=words) as caught:
            list_shards(pattern)
        assert "secret" not in str(caught.value)


def test_a_long_list_hidden_files_and_links(folder: Path, tmp_path: Path) -> None:
    (folder / "._a-000000.tar").write_bytes(b"of macOS")
    paths = [str(folder / f"a-00000{number}.tar") for number in range(2)]
    assert [source.location for source in list_shards(str(folder))] == paths
    # Longer than a path may be.
    text = "::".join([f"{folder}/a-000000.tar"] * 200)
    assert [source.location for source in list_shards(text)] == paths[:1]

    # As the cache of the Hugging Face hub has them.
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train-0.tar").symlink_to(paths[0])
    (source,) = list_shards(str(tmp_path / "snapshot"))
    assert (source.location, source.file) == (paths[0], "train-0.tar")


def test_a_file_that_is_shorter_than_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"of macOS")
    with pytest.raises(PackError, match="the whole shard could not be read"):
        index(tmp_path / "x.tar", tmp_path / "out")
    (rejection,) = read_rejections(tmp_path / "out" / "rejected.jsonl")
    assert rejection.reason.endswith("it ends within a tar header, at byte 0")


def test_shards_with_one_name_in_several_folders(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"part{number}").mkdir()
        write_tar(
            tmp_path / f"part{number}" / "0.tar",
            [("k.jpg", photo(number))],
        )
    manifest = index(
        f"{tmp_path}/part*/0.tar",
        tmp_path / "out",
    )

    assert [shard.file for shard in manifest.shards] == ["000000-0.tar", "000001-0.tar"]
    assert images_of(manifest) == [photo(0), photo(1)]


def test_a_manifest_beside_its_shards_names_them_by_file(folder: Path, tmp_path: Path) -> None:
    index(folder, folder)
    moved = folder.rename(tmp_path / "moved")
    assert [shard.location for shard in read_manifest(moved).shards] == ["", ""]
    assert images_of(read_manifest(moved)) == [photo(number) for number in range(9)]


def test_class_names_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n\n")
    names = read_names(tmp_path / "names.txt")
    manifest = index(
        folder,
        tmp_path / "out",
        label_format="cls",
        classes=names,
    )

    assert manifest.classes == ("cat", "dog", "owl")
    (tmp_path / "names.txt").write_text("cat\ncat\n")
    with pytest.raises(PackError, match="'cat' comes twice"):
        read_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(PackError, match="holds no class names"):
        read_names(tmp_path / "names.txt")


def test_a_photo_that_exif_turns_is_used_as_stored_and_counted(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    write_tar(
        tmp_path / "x.tar",
        [("k.jpg", photo(0, exif=tags))],
    )
    manifest = index(
        tmp_path / "x.tar",
        tmp_path / "out",
    )

    assert manifest.samples()[["width", "height"]].tolist() == [(32, 24)]
    summary = manifest.summary()
    assert summary is not None
    assert summary.converted == {"turned by EXIF, used as stored": 1}


def test_a_header_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(PackError, match="no usable sample"):
        index(tmp_path / "x.tar", tmp_path / "out")
    (rejection,) = read_rejections(tmp_path / "out" / "rejected.jsonl")
    assert "extended header of 1,099,511,627,776 bytes" in rejection.reason


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_the_webdataset_library_and_the_index_agree(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/w-%06d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            sample = {
                "jpg": photo(number),
                "cls": number % 3,
                "json": {"label": number % 3},
            }
            writer.write(
                {
                    "__key__": f"s{number:03d}",
                    **sample,
                }
            )

    manifest = index(
        f"{tmp_path}/w-*.tar",
        tmp_path / "out",
        label_format="cls",
    )
    pattern = str(tmp_path / "w-{000000..000002}.tar")
    theirs = [sample["jpg"] for sample in webdataset.WebDataset(pattern, shardshuffle=False)]
    gc.collect()
    assert images_of(manifest) == theirs
    assert np.array_equal(
        manifest.samples()["shard"],
        [0] * 4 + [1] * 4 + [2] * 2,
    )
