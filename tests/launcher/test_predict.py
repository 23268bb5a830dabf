"""A fine-tuned model on photos and packed sets: files that others read, resumed, kept."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Command
from helpers.networks import small_config
from PIL import Image
from pycocotools.coco import COCO

from colorgan import Classifier, Detector, Segmenter
from colorgan.errors import UsageError
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from shards.packing.indexing import index_shards

CLASSES = ("cat", "dog", "owl")
PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))


def model_of(kind: str, root: Path, seed: int = 1) -> Path:
    outputs = len(CLASSES) + (kind == "segmenter")
    config = small_config(kind, outputs, classes=CLASSES, palette=PALETTE)
    model = build_model(config)
    initialise(model, seed)
    save_model(root / kind, model, config)
    return root / kind


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in {"a": (40, 50), "deep/b": (33, 21)}.items():
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_labels(command: Command, photos: Path, tmp_path: Path) -> None:
    model, out = model_of("classifier", tmp_path), tmp_path / "out"
    assert "2 of 2 photos answered" in command("predict", "--model", model, "--out", out, photos)

    rows = list(csv.DictReader((out / "labels.csv").read_text().splitlines()))
    assert [Path(row["photo"]).name for row in rows] == ["a.png", "b.png"]
    written = json.loads((out / "labels.json").read_text())
    expected = Classifier.from_pretrained(model).predict(opened(photos / "a.png")).scores
    assert written["photos"][0]["scores"] == expected
    assert {name: float(rows[0][name]) for name in CLASSES} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_transparent_photos_are_laid_on_white(
    command: Command, kind: str, photos: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 41, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "c.png")
    words = ["--model", model_of(kind, tmp_path), "--min_score", "0", "--out", tmp_path / "out"]
    assert "3 of 3 photos answered" in command("predict", *words, photos)


def test_shards_that_number_anew_have_an_answer_for_each_photo(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    random = np.random.default_rng(2)
    for shard in range(2):
        with tarfile.open(tmp_path / "tars" / f"{shard}.tar", "w") as tar:
            for key in ("0000", "0001"):
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "JPEG")
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = file.tell()
                file.seek(0)
                tar.addfile(info, file)
    index_shards(str(tmp_path / "tars"), tmp_path / "set", workers=0)

    model, out = model_of("classifier", tmp_path), tmp_path / "out"
    command("predict", "--model", model, "--out", out, tmp_path / "set")
    answers = json.loads((out / "labels.json").read_text())["photos"]
    assert [answer["photo"].rpartition("/")[2] for answer in answers] == [
        "0000",
        "0001",
        "0000#2",
        "0001#3",
    ]


def test_masks(command: Command, photos: Path, tmp_path: Path) -> None:
    model, out = model_of("segmenter", tmp_path), tmp_path / "out"
    command("predict", "--model", model, "--out", out, photos)

    mask = opened(out / "masks/deep/b.png")
    assert (mask.mode, mask.size) == ("P", (21, 33))
    palette = mask.getpalette()
    assert palette is not None
    assert palette[3:6] == [200, 0, 0]
    answer = Segmenter.from_pretrained(model).predict(opened(photos / "deep/b.png"))
    assert np.array_equal(np.asarray(mask), answer.index_HW.numpy())
    assert opened(out / "overlays/deep/b.jpg").size == (21, 33)
    assert json.loads((out / "masks.json").read_text())["classes"] == ["background", *CLASSES]


def test_boxes(command: Command, photos: Path, tmp_path: Path) -> None:
    model, out = model_of("detector", tmp_path), tmp_path / "out"
    command("predict", "--model", model, "--out", out, "--min_score", 0, photos)

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "boxes.json"))
    answer = Detector.from_pretrained(model).predict(opened(photos / "a.png"))
    assert len(answer.boxes_N4) > 0
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [each["score"] for each in found] == pytest.approx(answer.scores_N.tolist())
    assert [coco.cats[each["category_id"]]["name"] for each in found] == list(answer.names)
    x0, y0, x1, y1 = answer.boxes_N4[0].tolist()
    assert found[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
    assert opened(out / "drawn/a.jpg").size == (50, 40)


def test_a_packed_set_is_answered_by_key(
    command: Command, packed: dict[str, Path], tmp_path: Path
) -> None:
    model, out = model_of("segmenter", tmp_path), tmp_path / "out"
    command("predict", "--model", model, "--out", out, packed["voc-val"])
    rows = json.loads((out / "masks.json").read_text())["photos"]
    assert len(rows) == 12
    assert all((out / row["mask"]).is_file() for row in rows)
    keys = {Path(row["photo"]).name for row in rows}
    assert keys == {path.stem for path in (out / "masks").iterdir()}


def test_it_goes_on_behind_the_last_photo(command: Command, photos: Path, tmp_path: Path) -> None:
    model, out = model_of("segmenter", tmp_path), tmp_path / "out"
    words: list[Any] = ["--model", model, "--out", out, photos]
    command("predict", *words)
    whole = (out / "masks.json").read_bytes()

    # As after a kill in the middle of the second line.
    journal = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(journal[:-20])
    first = (out / "masks/a.png").stat().st_mtime_ns
    (out / "masks.json").unlink()
    assert "2 of 2 photos answered (1 before)" in command("predict", *words)
    assert (out / "predictions.jsonl").read_bytes() == journal
    assert (out / "masks.json").read_bytes() == whole
    assert (out / "masks/a.png").stat().st_mtime_ns == first


def test_a_photo_that_was_replaced_is_answered_anew(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    words: list[Any] = ["--model", model_of("classifier", tmp_path), "--out", tmp_path / "out"]
    command("predict", *words, photos)

    Image.new("RGB", (20, 20), (250, 10, 10)).save(photos / "a.png")
    assert "2 of 2 photos answered (1 before)" in command("predict", *words, photos)
    after = json.loads((tmp_path / "out/labels.json").read_text())["photos"]
    # The model is drawn, not trained: the size tells which of the two it has seen.
    assert [row["width"] for row in after] == [20, 21]


def test_any_name_of_a_photo_has_its_answer(command: Command, photos: Path, tmp_path: Path) -> None:
    # Its bytes are no UTF-8; beside it two that differ by their endings alone.
    (photos / "a.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    opened(photos / "deep/b.png").save(photos / "deep/b.jpg")

    out, model = tmp_path / "out", model_of("classifier", tmp_path)
    assert "3 of 3 photos answered" in command("predict", "--model", model, "--out", out, photos)
    assert "caf\\udce9.png" in (out / "labels.csv").read_text()
    words = ["--model", model_of("segmenter", tmp_path), "--out", tmp_path / "masks", photos]
    with pytest.raises(UsageError, match="would both be written as deep/b"):
        command("predict", *words)


def test_other_answers_are_not_overwritten(command: Command, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("predict", "--model", model_of("classifier", tmp_path), "--out", out, photos)
    other = model_of("classifier", tmp_path / "other", seed=2)
    words: list[Any] = ["--model", other, "--out", out, photos]
    with pytest.raises(UsageError, match="holds answers of another model"):
        command("predict", *words)
    assert "2 of 2" in command("predict", *words, "--overwrite", "true")
    with pytest.raises(UsageError, match="holds other files"):
        command("predict", "--model", other, "--out", photos / "deep", photos / "a.png")


def test_bad_photos_are_named_and_the_others_answered(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"not a picture")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"(?s)2 of 3 photos answered; not the others:.*broken"):
        command("predict", "--model", model_of("classifier", tmp_path), "--out", out, photos)
    assert len(json.loads((out / "labels.json").read_text())["photos"]) == 2


def test_a_generator_answers_nothing(command: Command, photos: Path, tmp_path: Path) -> None:
    config = small_config("generator")
    save_model(tmp_path / "generator", build_model(config), config)
    words = ["--model", tmp_path / "generator", "--out", tmp_path / "out", photos]
    with pytest.raises(UsageError, match="holds a generator, which answers nothing"):
        command("predict", *words)
