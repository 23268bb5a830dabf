"""Hostile files: whatever their bytes, a clear error or a sound result, in bounded memory."""

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import ManifestError, PictureError, ShardError
from shards.foreign_labels import class_indices
from shards.images.conversion import decode_upright
from shards.images.jpeg_damage import examine
from shards.manifest import FileInfo, Manifest, ShardInfo, read_manifest, write_manifest
from shards.packing.foreign_samples import LabelRule, shard_of
from shards.packing.inputs import read_inputs
from shards.packing.tar import END, member
from shards.packing.verifying import verify
from shards.rejections import read_rejections
from shards.samples_table import SAMPLE_DTYPE
from shards.storage.tar_reader import DamagedTarError
from shards.summary import parse_summary

MAX_MEMORY = 64 << 20
bounded = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Change, cut, or lengthen some bytes."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        changed[place : place + data.draw(st.integers(0, 8))] = piece
    return bytes(changed[: data.draw(st.integers(0, len(changed)))])


def in_bounded_memory(work: Callable[[], Any]) -> None:
    tracemalloc.start()
    try:
        work()
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    random = np.random.default_rng(1)
    image = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
    image.save(stream, kind, **options)
    return stream.getvalue()


KINDS = {
    "JPEG": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "restarts": encoded("JPEG", restart_marker_blocks=1),
    "PNG": encoded("PNG"),
    "AVIF": encoded("AVIF"),
}


@pytest.mark.parametrize("kind", KINDS)
@bounded
@given(st.data())
def test_images(kind: str, data: st.DataObject) -> None:
    content = damaged(KINDS[kind], data)

    def work() -> None:
        examine(content)
        try:
            assert decode_upright(content, 10**6).ndim == 3
        except PictureError as error:
            assert str(error)
            assert "\n" not in str(error)

    in_bounded_memory(work)


def foreign_tar() -> bytes:
    parts = []
    for number in range(3):
        parts.append(member(f"k{number}.jpg", KINDS["JPEG"]))
        parts.append(member(f"k{number}.cls", str(number).encode()))
    return b"".join(parts) + END


@bounded
@given(st.data())
def test_tars(data: st.DataObject) -> None:
    content = damaged(foreign_tar(), data)

    def work() -> None:
        try:
            shard, size, _ = shard_of(
                io.BytesIO(content),
                LabelRule("cls"),
                10**6,
            )
        except DamagedTarError as error:
            assert str(error)
            return

        assert size <= len(content)
        for row in shard.table():
            assert 512 <= row["image_offset"] <= len(content) - row["image_size"]

    in_bounded_memory(work)


@bounded
@given(
    st.binary(max_size=64)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner, max_size=2)
        ),
    ).map(lambda value: json.dumps({"a": value}).encode())
)
def test_labels(content: bytes) -> None:
    for label_format in ("cls", "json:a", "json:a.a"):
        try:
            indices = class_indices(content, label_format, ("x", "y"))
        except ValueError as error:
            assert str(error)
        else:
            assert set(indices) <= {0, 1}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of one shard with two samples."""
    folder = tmp_path_factory.mktemp("set")
    jpeg = KINDS["JPEG"]
    rows = np.zeros(2, SAMPLE_DTYPE)
    rows["width"], rows["height"], rows["image_size"] = 32, 24, len(jpeg)
    rows["image_offset"] = 512
    np.save(folder / "samples.npy", rows)
    (folder / "x-000000.tar").write_bytes(member("k.jpg", jpeg) + END)
    (folder / "rejected.jsonl").write_text('{"shard":0,"key":"k","source":"k","reason":"r"}\n')
    (folder / "inputs.jsonl").write_text('{"shard": 0, "records": "", "labels": ""}\n')
    info = FileInfo(file="samples.npy", bytes=10, sha256="0" * 64)
    shard = ShardInfo(file="x-000000.tar", samples=2, bytes=10, sha256="0" * 64)
    values: dict[str, Any] = {
        "classes": (),
        "palette": (),
        "has_masks": False,
        "num_rejected": 1,
    }
    manifest = Manifest(
        name="x",
        corpus="x",
        split="x",
        image_policy="original",
        jpeg_quality=95,
        chroma_subsampling="4:4:4",
        num_samples=2,
        samples_file=info,
        shards=(shard,),
        **values,
    )
    write_manifest(manifest, folder)

    return folder


FILES = ("manifest.json", "samples.npy", "rejected.jsonl", "inputs.jsonl", "x-000000.tar")


@pytest.mark.parametrize("name", FILES)
@bounded
@given(st.data())
def test_files_of_a_set(packed: Path, name: str, data: st.DataObject) -> None:
    intact = (packed / name).read_bytes()
    (packed / name).write_bytes(damaged(intact, data))

    def work() -> None:
        read_inputs(packed / "inputs.jsonl")

        try:
            list(read_rejections(packed / "rejected.jsonl"))
        except ManifestError as error:
            assert "\n" not in str(error)

        try:
            manifest = read_manifest(packed)
            assert len(manifest.samples()) == manifest.num_samples
            list(verify(packed, workers=0))
        except ShardError as error:
            assert str(error)

    try:
        in_bounded_memory(work)
    finally:
        (packed / name).write_bytes(intact)


def test_a_table_that_names_a_far_shard_asks_for_no_memory(packed: Path) -> None:
    rows = np.load(packed / "samples.npy")
    intact = (packed / "samples.npy").read_bytes()
    rows["shard"] = 2**32 - 1
    np.save(packed / "samples.npy", rows)

    try:
        in_bounded_memory(lambda: list(verify(packed, workers=0)))
    finally:
        (packed / "samples.npy").write_bytes(intact)


@pytest.mark.parametrize("location", ["../x.tar", "x.tar", "file:/x", "/x\0.tar", "https:///x"])
def test_locations_that_lead_elsewhere_are_refused(packed: Path, location: str) -> None:
    document = json.loads((packed / "manifest.json").read_text())
    document["shards"][0]["location"] = location
    intact = (packed / "manifest.json").read_bytes()
    (packed / "manifest.json").write_text(json.dumps(document))

    try:
        with pytest.raises(ManifestError, match="location"):
            read_manifest(packed)
    finally:
        (packed / "manifest.json").write_bytes(intact)


SUMMARY = b'{"taken": 2, "near_grey": 1, "left_out": {"r": {"count": 1, "examples": ["a"]}}}'


@bounded
@given(st.data())
def test_summaries(data: st.DataObject) -> None:
    summary = parse_summary(damaged(SUMMARY, data))
    assert summary is None or (summary.taken >= 0 and summary.near_grey >= 0)
    assert parse_summary(SUMMARY) is not None
