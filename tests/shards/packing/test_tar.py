"""Shards open with every reader: tar, tarfile, wds2idx, the webdataset library, DALI's."""

import gc
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_corpus import draw_corpus

from shards.manifest import Manifest
from shards.packing.pack import pack
from shards.packing.tar import BLOCK, TIME_S, member


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    corpus = draw_corpus(tmp_path_factory.mktemp("corpus"))
    root = next(corpus.records()).image.parent
    out = tmp_path_factory.mktemp("out")
    report = pack(
        corpus,
        out,
        root=root,
        image_policy="short:16",
        samples_per_shard=20,
        workers=0,
    )

    assert report.manifest is not None
    assert len(report.manifest.shards) == 2
    return report.manifest


def samples(manifest: Manifest) -> Iterator[tuple[str, dict[str, bytes], dict[str, Any]]]:
    """Return what the table of samples refers to: key, members and row of each sample."""
    for row in manifest.samples():
        content = (manifest.folder / manifest.shards[row["shard"]].file).read_bytes()
        members = {}
        for name, extension in (("image", "jpg"), ("label", "json"), ("mask", "png")):
            offset = int(row[f"{name}_offset"])
            size = int(row[f"{name}_size"])
            members[extension] = content[offset : offset + size]
            assert zlib.crc32(members[extension]) == row[f"{name}_crc"]
        key = json.loads(members["json"])["key"]
        yield key, members, {name: int(row[name]) for name in ("width", "height")}


def test_tarfile_finds_what_the_table_says(manifest: Manifest) -> None:
    expected = [
        (f"{key}.{kind}", data)
        for key, members, _ in samples(manifest)
        for kind, data in members.items()
    ]
    found = []
    for shard in manifest.shards:
        with tarfile.open(manifest.folder / shard.file) as tar:
            for info in tar:
                assert info.isreg() and not info.pax_headers
                assert (
                    info.uid,
                    info.gid,
                    info.uname,
                    info.gname,
                    info.mode,
                ) == (
                    0,
                    0,
                    "",
                    "",
                    0o644,
                )
                stream = tar.extractfile(info)
                assert stream is not None
                found.append((info.name, stream.read()))

    assert found == expected


@pytest.mark.skipif(
    shutil.which("tar") is None,
    reason="no tar program on this machine",
)
def test_tar_extracts_without_a_word(manifest: Manifest, tmp_path: Path) -> None:
    for shard in manifest.shards:
        command = [
            "tar",
            "-xf",
            str(manifest.folder / shard.file),
            "-C",
            str(tmp_path),
        ]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == result.stderr == ""
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert files == {
        f"{key}.{kind}": data
        for key, members, _ in samples(manifest)
        for kind, data in members.items()
    }


@pytest.mark.skipif(
    shutil.which("tar") is None,
    reason="wds2idx needs the tar program",
)
def test_the_index_is_dalis_own(manifest: Manifest, tmp_path: Path) -> None:
    for shard in manifest.shards:
        tar = manifest.folder / shard.file
        command = [
            sys.executable,
            "-m",
            "wds2idx",
            str(tar),
            str(tmp_path / "x.idx"),
        ]
        subprocess.run(command, capture_output=True, check=True)
        assert (tmp_path / "x.idx").read_bytes() == tar.with_suffix(".idx").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_the_same_samples(manifest: Manifest) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = [str(manifest.folder / shard.file) for shard in manifest.shards]
    found = [
        (sample["__key__"], {kind: sample[kind] for kind in ("jpg", "json", "png")})
        for sample in webdataset.WebDataset(files, shardshuffle=False)
    ]
    gc.collect()  # the library leaves its files for the collector to close, with a warning

    assert found == [(key, members) for key, members, _ in samples(manifest)]


def test_dalis_reader_reads_and_decodes_the_same_samples(manifest: Manifest) -> None:
    dali = pytest.importorskip("nvidia.dali")
    fn = dali.fn

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        files = [str(manifest.folder / shard.file) for shard in manifest.shards]
        jpg, label, mask = fn.readers.webdataset(
            paths=files,
            index_paths=[f"{file[:-4]}.idx" for file in files],
            ext=["jpg", "json", "png"],
        )

        return (
            jpg,
            label,
            fn.decoders.image(jpg),
            fn.decoders.image(mask, output_type=dali.types.GRAY),
        )

    built = pipeline()
    built.build()
    for _, members, row in samples(manifest):
        jpg, label, image, mask = (np.asarray(output.at(0)) for output in built.run())
        assert (
            jpg.tobytes(),
            label.tobytes(),
        ) == (members["jpg"], members["json"])
        assert image.shape == (
            row["height"],
            row["width"],
            3,
        )
        assert mask.shape == (
            row["height"],
            row["width"],
            1,
        )
        assert set(np.unique(mask)) <= {
            0,
            1,
            2,
            255,
        }


def test_labels_hold_what_the_contract_says(manifest: Manifest) -> None:
    for key, members, row in samples(manifest):
        label = json.loads(members["json"])

        assert set(label) == {"classes", "objects", "key", "source", "width", "height"}
        assert label["source"].rsplit(".")[0] == key
        x0, y0, x1, y1 = label["objects"][0]["box"]
        area = 64 * row["width"] * row["height"] / (label["width"] * label["height"])

        assert (x1 - x0) * (y1 - y0) == pytest.approx(area, rel=0.01)
        assert min(row["width"], row["height"]) == min(
            16,
            label["width"],
            label["height"],
        )


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        8**5,
    ],
)
@pytest.mark.parametrize(
    "name",
    ["a.jpg", "k" * 95 + ".json"],
)
def test_members_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, TIME_S
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    packed = member(name, data)

    assert packed[:BLOCK] == info.tobuf(
        tarfile.USTAR_FORMAT,
        "ascii",
        "strict",
    )
    assert packed[BLOCK:] == data + bytes(-size % BLOCK)


@pytest.mark.parametrize(
    "name",
    ["k" * 96 + ".json", "\u00e4.jpg"],
)
def test_names_that_no_header_holds_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"letters|ascii"):
        member(name, b"")
