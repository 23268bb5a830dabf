"""Labels found and counted without decoding an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn_sample import write_sample
from PIL import Image

from colorgan.data import check_labels
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from datasets.sample.corpus import open_sample
from shards.loading.label_scan import count_classes, has_labels
from shards.loading.shard_set import open_shards
from shards.packing.pack import pack


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scan")
    write_sample(
        root / "raw",
        num_train=2,
        num_val=1,
        num_voc_train=7,
        num_voc_val=1,
        size=40,
    )
    corpus = open_sample(root / "raw", "voc-train")
    pack(
        corpus,
        root / "voc",
        root=root / "raw",
        image_policy="squash:32",
        workers=0,
    )

    return root


def test_counts_are_those_of_the_labels_that_were_packed(root: Path) -> None:
    shards = open_shards([root / "voc"])
    year = root / "raw" / "VOCdevkit" / "VOC2012"
    names = (year / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    expected = np.zeros(len(shards.classes), np.int64)
    for name in names:
        text = (year / "Annotations" / f"{name}.xml").read_text()
        expected += [f"<name>{each}</name>" in text for each in shards.classes]

    for kind in ("classes", "boxes"):
        counts = count_classes(shards, kind)  # type: ignore[arg-type]
        assert counts.samples == len(names) == 7
        assert counts.counts_C.tolist() == expected.tolist()
        assert has_labels(shards, kind)  # type: ignore[arg-type]
    assert expected.sum() > 7


def test_pixels_are_counted_background_first_and_void_left_out(root: Path) -> None:
    shards = open_shards([root / "voc"])
    counts = count_classes(shards, "mask")
    assert counts.counts_C.shape == (len(shards.classes) + 1,)
    assert 0 < counts.counts_C.sum() <= 7 * 32 * 32
    assert counts.counts_C[0] > counts.counts_C[1:].max() > 0


def test_a_set_without_a_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw" / "images").mkdir(parents=True)
    rows = []
    for number in range(3):
        name = f"{number}.jpg"
        pixels = np.full(
            (24, 24, 3),
            60 * number + 40,
            np.uint8,
        )
        Image.fromarray(pixels).save(tmp_path / "raw" / "images" / name)
        rows.append({"id": number, "file_name": name, "width": 24, "height": 24})

    annotations = {
        "images": rows,
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }

    folder = packed_coco(tmp_path, annotations)
    shards = open_shards([folder])

    assert shards.classes == ("cat",)

    for kind in ("classes", "boxes"):
        assert not has_labels(shards, kind)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"no image has a (class|box)"):
            check_labels(shards, kind, Ranks.single())  # type: ignore[arg-type]

    check_labels(shards, "none", Ranks.single())


def packed_coco(root: Path, annotations: dict[str, object]) -> Path:
    """Return a packed set whose labels are these."""
    raw = root / "raw"
    (raw / "annotations").mkdir()
    (raw / "annotations" / "instances_val2017.json").write_text(json.dumps(annotations))
    (raw / "images").rename(raw / "val2017")
    from datasets.corpora.coco import open_coco

    pack(
        open_coco(raw, "val"),
        root / "packed",
        root=raw,
        image_policy="squash:24",
        workers=0,
    )
    return root / "packed"
