"""shards/manifest.py: what is written is what is read, and every damage is one sentence."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ManifestError
from shards.manifest import (
    FileInfo,
    Manifest,
    ShardInfo,
    read_manifest,
    write_manifest,
)
from shards.samples_table import SAMPLE_DTYPE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a set of two shards with 3 + 2 samples and the least that read_manifest checks."""
    rows = np.zeros(5, SAMPLE_DTYPE)
    rows["shard"] = [0, 0, 0, 1, 1]
    np.save(tmp_path / "samples.npy", rows)
    table = (tmp_path / "samples.npy").read_bytes()
    for number in range(2):
        (tmp_path / f"x-train-{number:06d}.tar").write_bytes(bytes(1024))
    manifest = Manifest(
        name="x-train",
        corpus="x",
        split="train",
        classes=("cat", "dog"),
        palette=((0, 0, 0), (1, 2, 3), (4, 5, 6)),
        has_masks=False,
        image_policy="squash:64",
        jpeg_quality=95,
        chroma_subsampling="4:4:4",
        num_samples=5,
        num_rejected=1,
        samples_file=FileInfo(
            file="samples.npy", bytes=len(table), sha256=hashlib.sha256(table).hexdigest()
        ),
        shards=tuple(
            ShardInfo(
                file=f"x-train-{number:06d}.tar", samples=3 - number, bytes=1024, sha256="0" * 64
            )
            for number in range(2)
        ),
    )
    write_manifest(manifest, tmp_path)

    return tmp_path


def change(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_written_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)

    assert manifest.folder == folder
    assert manifest.classes == ("cat", "dog")
    assert manifest.palette[2] == (4, 5, 6)
    assert manifest.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert list(manifest.samples()["shard"]) == [0, 0, 0, 1, 1]
    assert write_manifest(manifest, folder) == manifest
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


def test_row_is_packed_as_the_contract_says() -> None:
    assert SAMPLE_DTYPE.itemsize == 60
    assert [SAMPLE_DTYPE.fields[name][1] for name in ("shard", "image_offset", "mask_crc")] == [
        0,
        12,
        56,
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema_version": 3}, "newer colorgan"),
        ({"schema_version": "1"}, "not one of our manifests"),
        ({"num_samples": 6}, "num_samples is 6, the shards add up to 5"),
        ({"num_samples": "5"}, "num_samples: Input should be a valid integer"),
        ({"classes": "cat"}, "classes"),
        ({"surprise": 1}, "surprise"),
        (
            {"shards": [{"file": "../x.tar", "samples": 5, "bytes": 1, "sha256": "0" * 64}]},
            "plain file name",
        ),
        (
            {"shards": [{"file": "/x.tar", "samples": 5, "bytes": 1, "sha256": "0" * 64}]},
            "plain file name",
        ),
        ({"shards": [{"file": "no.tar", "samples": 5, "bytes": 1, "sha256": "0" * 64}]}, "missing"),
        (
            {"shards": [{"file": "x-train-000000.tar", "samples": 5, "bytes": 1, "sha256": "0"}]},
            "sha256",
        ),
    ],
)
def test_wrong_manifests_are_refused_in_one_sentence(
    folder: Path, values: dict[str, object], words: str
) -> None:
    change(folder, **values)
    with pytest.raises(ManifestError, match=words) as error:
        read_manifest(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_files_shorter_than_promised_are_refused(folder: Path) -> None:
    shard = folder / "x-train-000001.tar"
    shard.write_bytes(bytes(1023))
    with pytest.raises(ManifestError, match="1023 bytes, shorter than the 1024"):
        read_manifest(folder)
    assert read_manifest(folder, check_files=False).num_samples == 5


@pytest.mark.parametrize(
    "rows",
    [np.zeros(4, SAMPLE_DTYPE), np.zeros((5, 60), np.uint8)],
)
def test_a_table_of_another_shape_is_refused(folder: Path, rows: np.ndarray) -> None:
    np.save(folder / "samples.npy", rows)
    change(folder, samples_file={"file": "samples.npy", "bytes": 1, "sha256": "0" * 64})
    with pytest.raises(ManifestError, match="5 rows of 60 bytes"):
        read_manifest(folder)


def test_a_table_that_would_be_unpickled_is_refused(folder: Path) -> None:
    np.save(folder / "samples.npy", np.array([{}] * 5, dtype=object), allow_pickle=True)
    change(folder, samples_file={"file": "samples.npy", "bytes": 1, "sha256": "0" * 64})
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(folder)


def test_missing_and_garbled_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")

    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"no manifest.json in it"):
        read_manifest(tmp_path / "empty")

    for garbage in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"):
        (folder / "manifest.json").write_bytes(garbage)
        with pytest.raises(ManifestError):
            read_manifest(folder)
