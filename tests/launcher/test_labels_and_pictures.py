"""Labels that disagree with their pictures: EXIF turns, resized copies, sizes that fit nothing.

A picture holds one white rectangle on black. After packing, box and mask are where the pixels are.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datasets.opening import CorpusName, open_corpus
from shards.packing.pack import PackReport, pack
from shards.rejections import REJECTED_FILE

WIDTH, HEIGHT = 120, 80  # upright
BOX = (70, 10, 110, 40)
ORIENTATION = 0x0112

Writer = Callable[[Path, Image.Image, Image.Exif, float], None]


@dataclass(frozen=True)
class Sample:
    """The members of the one packed sample."""

    picture: NDArray[np.uint8]
    label: dict[str, Any]
    mask: NDArray[np.uint8] | None


def upright_plane() -> NDArray[np.uint8]:
    plane = np.zeros(
        (HEIGHT, WIDTH),
        np.uint8,
    )
    x0, y0, x1, y1 = BOX
    plane[y0:y1, x0:x1] = 1
    return plane


def stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return the picture that looks upright once it is turned by this orientation."""
    # The inverse orientation undoes the turn: 6 and 8 are each other's, others are their own.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    tags = Image.Exif()
    tags[ORIENTATION] = inverse
    buffer = io.BytesIO()
    Image.fromarray(upright_plane() * 255).convert("RGB").save(
        buffer,
        "PNG",
        exif=tags,
    )
    turned = ImageOps.exif_transpose(Image.open(buffer))

    own = Image.Exif()
    own[ORIENTATION] = orientation
    return turned, own


def scaled_box(factor: float) -> list[float]:
    return [value * factor for value in BOX]


def label_mask(factor: float) -> Image.Image:
    size = (
        round(WIDTH * factor),
        round(HEIGHT * factor),
    )

    return Image.fromarray(upright_plane()).resize(
        size,
        Image.Resampling.NEAREST,
    )


def write_coco(root: Path, picture: Image.Image, exif: Image.Exif, factor: float) -> None:
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    picture.save(
        root / "train2017/1.jpg",
        quality=98,
        exif=exif,
    )
    x0, y0, x1, y1 = scaled_box(factor)
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }

    width = round(WIDTH * factor)
    height = round(HEIGHT * factor)
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": width, "height": height}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "box"}],
    }
    (root / "annotations/instances_train2017.json").write_text(json.dumps(data))


def write_voc(root: Path, picture: Image.Image, exif: Image.Exif, factor: float) -> None:
    year = root / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    picture.save(
        year / "JPEGImages/1.jpg",
        quality=98,
        exif=exif,
    )
    label_mask(factor).save(year / "SegmentationClass/1.png")
    (year / "ImageSets/Segmentation/train.txt").write_text("1\n")

    x0, y0, x1, y1 = scaled_box(factor)
    width = round(WIDTH * factor)
    height = round(HEIGHT * factor)
    (year / "Annotations/1.xml").write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>aeroplane</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
    )


def write_folder(root: Path, picture: Image.Image, exif: Image.Exif, factor: float) -> None:
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True)
    picture.save(
        root / "images/train/1.jpg",
        quality=98,
        exif=exif,
    )
    label_mask(factor).save(root / "masks/train/1.png")


CORPORA: dict[CorpusName, tuple[Writer, str]] = {
    "coco": (write_coco, "train"),
    "voc": (write_voc, "seg-train"),
    "folder": (write_folder, "train"),
}


def packed(tmp_path: Path, name: CorpusName) -> PackReport:
    corpus = open_corpus(
        name,
        tmp_path / "raw",
        CORPORA[name][1],
    )
    options = {"image_policy": "original", "jpeg_quality": 100, "workers": 0}

    return pack(
        corpus,
        tmp_path / "out",
        root=tmp_path / "raw",
        **options,
    )


def sample_of(report: PackReport, tmp_path: Path) -> Sample:
    """Read the members of the only sample."""
    assert report.manifest is not None
    assert report.packed == 1

    (shard,) = report.manifest.shards
    with tarfile.open(tmp_path / "out" / shard.file) as tar:
        members = {Path(info.name).suffix: tar.extractfile(info).read() for info in tar}
    picture = np.asarray(Image.open(io.BytesIO(members[".jpg"])).convert("L"))
    mask = np.asarray(Image.open(io.BytesIO(members[".png"]))) if ".png" in members else None
    return Sample(
        picture,
        json.loads(members[".json"]),
        mask,
    )


def check(sample: Sample, name: CorpusName) -> None:
    """Compare box and mask with the white pixels."""
    white = sample.picture > 127
    rows, columns = np.nonzero(white)
    box = [
        columns.min(),
        rows.min(),
        columns.max() + 1,
        rows.max() + 1,
    ]
    assert white.shape == (HEIGHT, WIDTH)
    assert box == list(BOX)
    np.testing.assert_array_equal(sample.mask == 1, white)

    if name != "folder":
        (item,) = sample.label["objects"]
        assert item["box"] == pytest.approx(box, abs=0.01)
    if name == "coco":
        assert item["area"] == pytest.approx(white.sum())


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_labels_made_on_the_upright_view_of_any_size(
    tmp_path: Path, name: CorpusName, orientation: int, factor: float
) -> None:
    picture, exif = stored(orientation)
    CORPORA[name][0](
        tmp_path / "raw",
        picture,
        exif,
        factor,
    )
    check(
        sample_of(packed(tmp_path, name), tmp_path),
        name,
    )


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_labels_made_on_the_stored_pixels_are_turned_with_them(
    tmp_path: Path, name: CorpusName, orientation: int, factor: float
) -> None:
    """The label is of a landscape picture; EXIF says that it is to be shown as a portrait."""
    landscape = Image.fromarray(upright_plane() * 255).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    CORPORA[name][0](
        tmp_path / "raw",
        landscape,
        exif,
        factor,
    )
    sample = sample_of(
        packed(tmp_path, name),
        tmp_path,
    )

    white = sample.picture > 127
    assert white.shape == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(sample.mask == 1, white)
    if name != "folder":
        rows, columns = np.nonzero(white)
        box = [
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        ]
        assert sample.label["objects"][0]["box"] == pytest.approx(box, abs=0.01)


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("orientation", [1, 6])
def test_labels_of_another_shape_reject_the_picture_by_name(
    tmp_path: Path, name: CorpusName, orientation: int
) -> None:
    """A second picture with its own labels is packed all the same."""
    write, _ = CORPORA[name]
    cropped = Image.fromarray(upright_plane()[:, :90] * 255).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    write(
        tmp_path / "raw",
        cropped,
        exif,
        1,
    )
    with pytest.raises(Exception, match="all 1 records were rejected"):
        packed(tmp_path, name)

    (line,) = (tmp_path / "out" / REJECTED_FILE).read_text().splitlines()
    reason = json.loads(line)["reason"]
    assert "120 x 80" in reason or "80 x 120" in reason
    assert "90 x 80" in reason or "80 x 90" in reason
    assert ("EXIF orientation 6" in reason) == (orientation == 6)
