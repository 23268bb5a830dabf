"""The summary and the contact sheet of a packed set."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_corpus import digests, draw_corpus
from numpy.typing import NDArray
from PIL import Image

from shards.images.chroma import is_low_quality, jpeg_quality, mean_chroma
from shards.manifest import read_manifest
from shards.packing.contact_sheet import GAP, SIDE, write_contact_sheet
from shards.packing.pack import pack
from shards.packing.tally import left_out_by_reason
from shards.records import Corpus, LeftOut, Record
from shards.rejections import Rejection, read_rejections
from shards.summary import read_summary

SETTINGS: dict[str, Any] = {"image_policy": "original", "workers": 0}


@dataclasses.dataclass(frozen=True)
class Plane:
    """A mask that is drawn, not read."""

    indices: tuple[tuple[int, ...], ...]

    def read(self) -> NDArray[np.uint8]:
        return np.array(self.indices, np.uint8)


def save(
    path: Path,
    color: tuple[int, int, int],
    size: tuple[int, int],
    **options: Any,
) -> Path:
    Image.new("RGB", size, color).save(
        path,
        **options,
    )
    return path


def corpus_of(records: list[Record], **values: Any) -> Corpus:
    palette = ((0, 0, 0), (250, 0, 0), (0, 250, 0))

    return Corpus(
        "x",
        "train",
        ("cat", "dog"),
        palette,
        None,
        lambda: iter(records),
        **values,
    )


def test_boxes_and_masks_are_drawn_where_they_are(tmp_path: Path) -> None:
    """A box in the left half of a grey photo, and a mask in the lower half of another."""
    photo = save(
        tmp_path / "a.png",
        (128, 128, 128),
        (40, 40),
    )
    box = {
        "class": 0,
        "box": [4, 4, 16, 36],
        "difficult": False,
        "crowd": False,
    }
    rows = tuple(tuple([2 if y >= 20 else 0] * 40) for y in range(40))
    records = [
        Record("a", photo, {"classes": [0], "objects": [box]}),
        Record(
            "b",
            photo,
            {"classes": [1], "objects": []},
            Plane(rows),
        ),
    ]
    out = tmp_path / "out"
    pack(corpus_of(records), out, root=tmp_path, **SETTINGS)

    with Image.open(out / "sample.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    scale = SIDE / 40
    left, right = (sheet[GAP : GAP + SIDE, x : x + SIDE] for x in (GAP, 2 * GAP + SIDE))

    is_red = (left[..., 0] > 200) & (left[..., 1] < 60)
    columns = np.flatnonzero(is_red[SIDE // 2])
    assert columns.min() == pytest.approx(4 * scale, abs=2)
    assert columns.max() == pytest.approx(16 * scale, abs=3)
    assert (np.abs(right[SIDE // 4, SIDE // 2] - 128) < 3).all()
    assert right[3 * SIDE // 4, SIDE // 2, 1] > 180


def test_a_name_at_the_edge_is_whole_and_leaves_the_caption_alone(tmp_path: Path) -> None:
    photo = save(tmp_path / "a.png", (128, 128, 128), (40, 40))
    box = {"class": 0, "box": [37, 39, 40, 40], "difficult": False, "crowd": False}
    record = Record("a", photo, {"classes": [0], "objects": [box]})
    corpus = dataclasses.replace(corpus_of([record]), classes=("chimpanzee", "dog"))
    out = tmp_path / "out"
    pack(corpus, out, root=tmp_path, **SETTINGS)

    with Image.open(out / "sample.png") as image:
        cell = np.asarray(image.convert("RGB")).astype(int)[GAP:, GAP : GAP + SIDE]
    is_red = (np.abs(cell - [250, 0, 0]) < 10).all(-1)
    assert not is_red[SIDE:].any()
    # Eleven pixels high, and as wide as ten letters; the box alone is 17 x 6.
    assert is_red[SIDE - 10 : SIDE, SIDE - 50 : SIDE - 2].any(0).all()


@pytest.mark.parametrize("name", ["a\nb.png", "caf\udce9.png"])
@pytest.mark.parametrize("is_good", [True, False])
def test_any_name_that_a_system_allows_is_packed_counted_and_drawn(
    tmp_path: Path, name: str, is_good: bool
) -> None:
    odd = save(tmp_path / "other.png", (9, 9, 9), (8, 8)).rename(tmp_path / name)
    if not is_good:
        odd.write_bytes(b"junk")
    photo = save(tmp_path / "c.png", (128, 128, 128), (40, 40))
    box = {"class": 0, "box": [4, 4, 16, 36], "difficult": False, "crowd": False}
    records = [
        Record("a", odd, {"classes": [0], "objects": []}, dropped=(f"odd: {name}",)),
        Record("c", photo, {"classes": [0], "objects": [box]}),
    ]
    left_out = (LeftOut(f"like {name}", 1, (name,)),)
    corpus = corpus_of(records, left_out=left_out)
    classes = ("traffic\nlight", "d\udce9")
    out = tmp_path / "out"
    report = pack(dataclasses.replace(corpus, classes=classes), out, root=tmp_path, **SETTINGS)

    shown = name.replace("\udce9", r"\xe9")
    summary = read_summary(out)
    assert summary is not None
    assert summary.left_out[f"like {shown}"].examples == (shown,)
    if is_good:
        assert summary.smallest is not None
        assert summary.smallest.source == shown
    else:
        assert [each.source for each in read_rejections(out / "rejected.jsonl")] == [shown]
    assert report.manifest is not None
    assert report.manifest.classes == ("traffic\nlight", r"d\xe9")
    with Image.open(out / "sample.png") as image:
        assert image.width == (2 if is_good else 1) * (SIDE + GAP) + GAP


def test_a_set_gives_the_same_sheet_and_its_digest_does_not_depend_on_it(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    corpus = draw_corpus(tmp_path / "corpus")
    pack(
        corpus,
        tmp_path / "out",
        root=tmp_path / "corpus",
        **SETTINGS,
    )
    manifest = read_manifest(tmp_path / "out")
    before = digests(tmp_path / "out")

    for name in ("sample.png", "summary.json"):
        (tmp_path / "out" / name).unlink()
    bare = read_manifest(tmp_path / "out")
    assert bare.digest == manifest.digest
    assert bare.summary() is None

    write_contact_sheet(bare)
    assert digests(tmp_path / "out")["sample.png"] == before["sample.png"]


def test_the_summary_counts_what_became_of_the_photos(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    colored = (200, 40, 40)
    grey = (90, 90, 90)
    records = [
        Record(
            "a",
            save(
                tmp_path / "a.jpg",
                colored,
                (30, 20),
                exif=tags,
            ),
            {},
            dropped=("no area",),
        ),
        Record(
            "b",
            save(tmp_path / "b.jpg", grey, (50, 60)),
            {},
        ),
        Record(
            "c",
            save(tmp_path / "c.jpg", colored, (10, 9), quality=30),
            {},
        ),
        Record("d", tmp_path / "missing.jpg", {}),
    ]
    left_out = (LeftOut("files of an unknown kind", 2, ("x.xyz", "y.xyz")),)
    corpus = corpus_of(records, left_out=left_out)
    pack(corpus, tmp_path / "out", root=tmp_path, **SETTINGS)

    summary = read_manifest(tmp_path / "out").summary()
    assert summary is not None and summary.taken == 3
    assert summary.converted == {"turned by EXIF": 1}
    assert (
        summary.near_grey,
        summary.low_quality,
        summary.off_profile,
    ) == (1, 1, 0)
    assert summary.labels_dropped["no area"].count == 1
    reasons = {reason: each.count for reason, each in summary.left_out.items()}
    assert reasons == {"files of an unknown kind": 2, "missing file": 1}
    assert summary.smallest is not None
    assert summary.smallest.source == "c.jpg"
    assert summary.largest is not None
    assert summary.largest.source == "b.jpg"


def test_min_chroma_leaves_grey_photos_out(tmp_path: Path) -> None:
    records = [
        Record(
            "a",
            save(
                tmp_path / "a.png",
                (200, 40, 40),
                (8, 8),
            ),
            {},
        ),
        Record(
            "b",
            save(
                tmp_path / "b.png",
                (90, 90, 92),
                (8, 8),
            ),
            {},
        ),
    ]
    corpus = corpus_of(records)
    report = pack(
        corpus,
        tmp_path / "out",
        root=tmp_path,
        min_chroma=1.5,
        **SETTINGS,
    )

    assert (report.packed, report.rejected) == (1, 1)
    summary = read_manifest(tmp_path / "out").summary()
    assert summary is not None
    assert list(summary.left_out) == ["too little color"]


def test_reasons_are_counted_with_three_examples() -> None:
    rejections = [Rejection(0, str(n), f"{n}.jpg", f"cannot be decoded: at {n}") for n in range(5)]
    (reason,) = left_out_by_reason(rejections).items()
    assert reason[0] == "cannot be decoded"
    assert reason[1].count == 5
    assert reason[1].examples == ("0.jpg", "1.jpg", "2.jpg")


@pytest.mark.parametrize("quality", [20, 49, 60, 80, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(tmp_path: Path, quality: int) -> None:
    for subsampling, least in ((0, 50), (2, 70)):
        path = save(
            tmp_path / "a.jpg", (9, 99, 9), (16, 16), quality=quality, subsampling=subsampling
        )
        with Image.open(path) as image:
            assert jpeg_quality(image) == pytest.approx(quality, abs=1.5)
            assert is_low_quality(image) == (quality < least)


def test_chroma_is_that_of_lab() -> None:
    skimage = pytest.importorskip("skimage.color")
    for color in ((200, 40, 40), (10, 10, 200), (128, 128, 128), (250, 240, 230)):
        lab = skimage.rgb2lab(np.array([[color]], np.uint8))[0, 0]
        image = Image.new("RGB", (300, 200), color)
        assert mean_chroma(image) == pytest.approx(
            np.hypot(lab[1], lab[2]),
            abs=0.05,
        )

    assert mean_chroma(Image.new("L", (9, 9), 77)) == 0.0
