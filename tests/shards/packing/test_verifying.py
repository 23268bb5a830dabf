"""Verifying and rebuilding: each damage is found and named, and a shard can be rebuilt."""

import dataclasses
import hashlib
import io
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.small_corpus import NUM_GOOD, digests, draw_corpus
from PIL import Image

from shards.errors import ManifestError, PackError
from shards.manifest import read_manifest, write_manifest
from shards.packing.pack import pack
from shards.packing.rebuilding import rebuild_shard
from shards.packing.verifying import ShardCheck, verify
from shards.records import Corpus

KEYS = [f"r{number:02d}" for number in range(NUM_GOOD)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return draw_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def root(corpus: Corpus) -> Path:
    return next(corpus.records()).image.parent


@pytest.fixture(scope="module")
def packed(corpus: Corpus, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    pack(
        corpus,
        out,
        root=root,
        image_policy="squash:16",
        samples_per_shard=8,
        workers=0,
    )

    return out


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


def faults(folder: Path, workers: int = 0) -> list[ShardCheck]:
    return [check for check in verify(folder, workers=workers) if not check.is_good]


def write(
    folder: Path,
    sample: int,
    name: str,
    content: bytes,
    *,
    at: int = 0,
) -> None:
    """Overwrite a member in place, padded with zeros to its size; correct the table's crc."""
    manifest = read_manifest(folder, check_files=False)
    rows = np.array(manifest.samples())
    row = rows[sample]
    size = int(row[f"{name}_size"])

    assert len(content) <= size
    content = content.ljust(
        size,
        b" " if name == "label" else b"\0",
    )
    with (folder / manifest.shards[row["shard"]].file).open("r+b") as stream:
        stream.seek(int(row[f"{name}_offset"]) + at)
        stream.write(content)
    row[f"{name}_crc"] = zlib.crc32(content)
    np.save(folder / "samples.npy", rows)


def read(folder: Path, sample: int, name: str) -> bytes:
    manifest = read_manifest(folder, check_files=False)
    row = manifest.samples()[sample]
    start = int(row[f"{name}_offset"])
    return (folder / manifest.shards[row["shard"]].file).read_bytes()[
        start : start + int(row[f"{name}_size"])
    ]


def seal(folder: Path) -> None:
    """Let the manifest agree with the files, so that only the samples themselves tell."""
    manifest = read_manifest(folder, check_files=False)

    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    shards = tuple(
        info.model_copy(update={"sha256": digest(info.file)}) for info in manifest.shards
    )
    table = manifest.samples_file.model_copy(update={"sha256": digest("samples.npy")})
    write_manifest(
        manifest.model_copy(update={"shards": shards, "samples_file": table}),
        folder,
    )


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def flip_bit(folder: Path) -> None:
    manifest = read_manifest(folder)
    with (folder / manifest.shards[0].file).open("r+b") as stream:
        stream.seek(int(manifest.samples()[0]["image_offset"]) + 300)
        byte = stream.read(1)[0]
        stream.seek(-1, io.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def damage_header(folder: Path) -> None:
    manifest = read_manifest(folder)
    with (folder / manifest.shards[1].file).open("r+b") as stream:
        stream.seek(int(manifest.samples()[8]["mask_offset"]) - 512)
        stream.write(b"other")


def change_row(sample: int, **values: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rows = np.array(read_manifest(folder).samples())
        for name, value in values.items():
            rows[sample][name] = value
        np.save(folder / "samples.npy", rows)

    return change


def change_label(
    sample: int,
    old: bytes,
    new: bytes,
) -> Callable[[Path], None]:
    return lambda folder: write(
        folder,
        sample,
        "label",
        read(folder, sample, "label").replace(
            old,
            new,
        ),
    )


def change_picture(
    sample: int,
    name: str,
    content: bytes,
) -> Callable[[Path], None]:
    return lambda folder: write(folder, sample, name, content)


DAMAGES: dict[int, tuple[Callable[[Path], None], str]] = {
    0: (flip_bit, "image: checksum differs"),
    2: (
        change_picture(2, "image", b"\xff\xd8 garbage"),
        "image: cannot be decoded (it is no JPEG)",
    ),
    4: (
        change_picture(
            4,
            "image",
            encoded(
                Image.new("L", (8, 8)),
                "JPEG",
            ),
        ),
        "image: 8 x 8, the manifest says 16 x 16",
    ),
    6: (change_label(6, b'"key"', b'"key'), "label: cannot be decoded"),
    8: (damage_header, "mask: tar header is damaged"),
    10: (change_label(10, b'"r10"', b'"r99"'), "label: is that of r99"),
    12: (
        change_label(12, b'"classes":[0]', b'"classes":[2]'),
        "label: class 2 is none of the 2 classes",
    ),
    14: (
        change_picture(
            14,
            "mask",
            encoded(Image.new("P", (16, 16)), "PNG"),
        ),
        "mask: pixels of mode P",
    ),
    16: (
        change_picture(
            16,
            "mask",
            encoded(
                Image.new("L", (16, 16), 7),
                "PNG",
            ),
        ),
        "mask: holds index 7",
    ),
    18: (change_row(18, mask_size=0), "mask is missing"),
    20: (
        change_row(20, image_offset=10**9),
        "image lies beyond the end",
    ),
    22: (change_row(22, label_size=3), "label: checksum differs"),
}


def test_a_good_set_is_good(folder: Path) -> None:
    checks = list(verify(folder, workers=2))
    assert sum(check.samples for check in checks) == NUM_GOOD
    assert all(check.is_good for check in checks)


@pytest.mark.parametrize("sealed", [False, True])
def test_samples_damaged_in_twelve_ways_are_named_and_no_others(folder: Path, sealed: bool) -> None:
    for damage, _ in DAMAGES.values():
        damage(folder)
    if sealed:
        seal(folder)
    checks = faults(folder, workers=1)
    bad = [sample for check in checks for sample in check.bad_samples]

    assert [sample.index for sample in bad] == list(DAMAGES)
    for sample in bad:
        assert sample.key == KEYS[sample.index]
        assert DAMAGES[sample.index][1] in str(sample)
    named = {check.shard for check in checks if check.faults}

    assert bool(named) != sealed


@pytest.mark.parametrize("sample", DAMAGES)
def test_each_damage_alone_is_found(folder: Path, sample: int) -> None:
    damage, words = DAMAGES[sample]
    damage(folder)
    seal(folder)
    checks = faults(folder)
    assert [[bad.index for bad in check.bad_samples] for check in checks] == [[sample]]
    assert words in str(checks[0].bad_samples[0])


def test_damaged_files_are_named(folder: Path) -> None:
    name = "small-train-00000{}"
    tar = folder / f"{name.format(0)}.tar"
    tar.write_bytes(tar.read_bytes()[:-5000])
    (folder / f"{name.format(1)}.tar").unlink()
    (folder / f"{name.format(2)}.idx").write_text("v1.2 0\n")
    (folder / f"{name.format(3)}.idx").unlink()
    (folder / f"{name.format(4)}.tar").write_bytes(b"")
    (folder / "rejected.jsonl").write_text("")
    checks = {check.shard: check for check in faults(folder)}
    told = {shard: " ".join(check.faults) for shard, check in checks.items()}

    assert "bytes, the manifest says" in told[tar.name]
    assert "sha256" in told[tar.name]
    assert checks[tar.name].bad_samples[-1].faults[-1] == "mask lies beyond the end of the shard"
    assert "cannot be read (No such file" in told[f"{name.format(1)}.tar"]
    assert "is not the index" in told[f"{name.format(2)}.tar"]
    assert "cannot be read" in told[f"{name.format(3)}.tar"]
    assert "0 bytes" in told[f"{name.format(4)}.tar"]
    assert "0 lines, the manifest says 4" in told["rejected.jsonl"]


def test_a_damaged_table_is_named(folder: Path) -> None:
    rows = np.array(read_manifest(folder).samples())
    rows["shard"] = rows["shard"][::-1]
    np.save(folder / "samples.npy", rows)
    told = [
        fault for check in faults(folder) for fault in check.faults if check.shard == "samples.npy"
    ]

    assert told == [
        "sha256 is not the manifest's",
        "its samples do not lie in the shards as the manifest counts them",
    ]


def test_a_folder_that_is_no_set_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        list(verify(tmp_path))


# ---- one shard again ----


def test_a_damaged_shard_is_mended_and_nothing_else_changes(
    corpus: Corpus, root: Path, packed: Path, folder: Path
) -> None:
    (folder / "small-train-000002.tar").write_bytes(b"damaged")
    (folder / "small-train-000002.idx").unlink()
    before = {
        path: path.stat().st_mtime_ns for path in folder.iterdir() if "000002" not in path.name
    }
    report = rebuild_shard(corpus, folder, 2, root=root, workers=0)

    assert report.packed == 7
    assert report.manifest == read_manifest(folder)
    assert digests(folder) == digests(packed)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_changed_source_changes_its_shard_and_the_digest(
    root: Path, folder: Path, tmp_path: Path, number: int
) -> None:
    """The set is then the one that a fresh packing of the changed source gives."""
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    corpus = draw_corpus(changed)
    records = list(corpus.records())[number * 8 : number * 8 + 8]
    records[0].image.write_bytes(b"no picture any more")
    before = read_manifest(folder).digest
    report = rebuild_shard(corpus, folder, number, root=changed, workers=0)

    assert report.manifest is not None
    assert report.manifest.digest != before
    pack(
        corpus,
        tmp_path / "fresh",
        root=changed,
        image_policy="squash:16",
        samples_per_shard=8,
        workers=0,
    )

    assert digests(folder) == digests(tmp_path / "fresh")
    assert not faults(folder)


def test_a_shard_that_loses_or_regains_all_its_samples(
    root: Path, corpus: Corpus, packed: Path, folder: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    other = draw_corpus(changed)
    for record in list(other.records())[8:16]:
        record.image.write_bytes(b"")
    rebuild_shard(other, folder, 1, root=changed, workers=0)
    manifest = read_manifest(folder)

    assert [info.file[-10:-4] for info in manifest.shards] == [
        "000000",
        "000002",
        "000003",
        "000004",
    ]
    assert not faults(folder)

    rebuild_shard(corpus, folder, 1, root=root, workers=0)
    assert digests(folder) == digests(packed)


def test_a_shard_of_an_unfinished_set_is_packed_alone(
    corpus: Corpus, root: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = {"image_policy": "squash:16", "samples_per_shard": 8}
    pack(
        corpus,
        out,
        root=root,
        workers=0,
        part=(1, 5),
        **settings,  # type: ignore[arg-type]
    )

    assert (
        rebuild_shard(
            corpus,
            out,
            3,
            root=root,
            workers=0,
        ).manifest
        is None
    )

    report = pack(
        corpus,
        out,
        root=root,
        workers=0,
        **settings,  # type: ignore[arg-type]
    )

    assert report.kept == 16
    assert digests(out) == digests(packed)


def test_what_cannot_be_rebuilt_is_refused(
    corpus: Corpus, root: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackError, match="no records for a shard 5"):
        rebuild_shard(corpus, folder, 5, root=root, workers=0)

    with pytest.raises(PackError, match="nothing has been packed here"):
        rebuild_shard(
            corpus,
            tmp_path / "new",
            0,
            root=root,
            workers=0,
        )

    with pytest.raises(PackError, match="holds small train, not small val"):
        rebuild_shard(
            dataclasses.replace(corpus, split="val"),
            folder,
            0,
            root=root,
            workers=0,
        )
