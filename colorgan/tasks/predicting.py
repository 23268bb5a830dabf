"""A fine-tuned model on a user's photos: labels, masks or boxes, as files beside a journal.

predictions.jsonl    a line per photo; an interrupted command goes on behind the last one
labels.json, .csv    a classifier: each class's probability
masks/, masks.json   a segmenter: class indices as PNG with a palette; overlays/ to look at
boxes.json           a detector: COCO's format; drawn/ to look at
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from colorgan.data import PictureError, ShardError
from colorgan.distributed.ranks import DeviceName, chosen_device
from colorgan.errors import UsageError
from colorgan.evaluation.picture_grids import draw_boxes, mask_colors, paint_mask
from colorgan.files import owned_folder, replacing, write_json
from colorgan.models.model_config import read_config, weights_digest
from colorgan.models.predictors import Boxes, Classifier, Detector, Labels, Mask, Segmenter
from colorgan.tasks.journal import Journal
from colorgan.tasks.photo_sources import PhotoSource, check_stems, open_sources

JOURNAL = "predictions.jsonl"
PREDICTORS: dict[str, type[Classifier] | type[Segmenter] | type[Detector]] = {
    each.kind: each for each in (Classifier, Segmenter, Detector)
}
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
# Text on a drawn picture: a share of its height, never smaller than this.
MIN_TEXT_PX, TEXT_SHARE = 12, 40

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Predicting:
    """How photos are answered and written.

    Attributes:
        out: Folder for the answers; made if it does not exist.
        pictures: Write overlays of masks, and photos with their boxes drawn.
        min_score: Boxes below it are not drawn; boxes.json has all.
        max_pixels: Photos with more pixels are refused.
        device: "auto" takes a GPU where PyTorch finds one.
        overwrite: Start afresh in a folder that holds other answers.
    """

    out: Path
    pictures: bool
    min_score: float
    max_pixels: int
    device: DeviceName = "auto"
    overwrite: bool = False


def predict_photos(model: Path, photos: Sequence[Path], predicting: Predicting) -> str:
    """Answer every photo that can be read; return a line about it.

    Raises:
        UsageError: The folder holds something else, or some photos could not be read (the others
            are answered).
        ModelFolderError: `model` is not a fine-tuned model's folder.
        ShardError: A packed set cannot be opened.
    """
    predictor, header = _load(model, predicting.device)
    out = predicting.out
    with open_sources(photos, out, predicting.max_pixels) as sources, owned_folder(out):
        if predictor.kind == "segmenter" or (predictor.kind == "detector" and predicting.pictures):
            check_stems(sources)
        journal = Journal.open(out, JOURNAL, header, overwrite=predicting.overwrite)
        num_before = sum(_is_answered(source, journal, predicting) for source in sources)
        with closing(journal):
            failures = _answer_all(predictor, sources, predicting, journal)

        rows = [journal.rows[each.name] for each in sources if each.name in journal.rows]
        _write_summary(predictor, rows, out)

    answered = f"{len(rows)} of {len(sources)} photos"
    if failures:
        raise UsageError(f"{out}: {answered} answered; not the others:\n  " + "\n  ".join(failures))
    return f"{out}: {answered} answered" + (f" ({num_before} before)" if num_before else "")


def _load(model: Path, device: DeviceName) -> tuple[Any, dict[str, Any]]:
    """Return the model, and what the journal is of."""
    kind = read_config(model).kind
    if kind not in PREDICTORS:
        raise UsageError(
            f"{model} holds a {kind}, which answers nothing about a photo: fine-tune it with "
            "launcher/finetune.py, color with launcher/colorize.py"
        )
    predictor = PREDICTORS[kind].from_pretrained(model).to(chosen_device(device))
    return predictor, {"kind": kind, "weights_sha256": weights_digest(model)}


def _answer_all(
    predictor: Any, sources: Sequence[PhotoSource], predicting: Predicting, journal: Journal
) -> list[str]:
    """Answer the photos that the journal lacks; return what is wrong with the others."""
    failures = []
    for source in track(sources, "predicting", transient=True):
        if _is_answered(source, journal, predicting):
            continue
        try:
            image = source.read()
            answer = predictor.predict(image)
            row = _written(answer, image, source, predicting, predictor)
            journal.add(source.name, {"version": source.version, **row})
        except (PictureError, ShardError, OSError) as error:
            failures.append(f"{source.name}: {error}")
    return failures


def _is_answered(source: PhotoSource, journal: Journal, predicting: Predicting) -> bool:
    """Return whether the journal has the answer to a photo, as its file is now."""
    row = journal.rows.get(source.name)
    if row is None or row.get("version", "") != source.version:
        return False
    return _has_files(row, predicting)


def _has_files(row: Row, predicting: Predicting) -> bool:
    """Return whether the files that a row names are still there."""
    names = [row[key] for key in ("mask", "picture") if key in row]
    if predicting.pictures and "picture" not in row and "scores" not in row:
        return False
    return all((predicting.out / name).is_file() for name in names)


def _written(
    answer: Labels | Mask | Boxes,
    image: Image.Image,
    source: PhotoSource,
    predicting: Predicting,
    predictor: Any,
) -> dict[str, Any]:
    """Write a photo's files; return its row of the journal."""
    size = {"width": image.width, "height": image.height}
    palette = predictor.model_config.palette
    match answer:
        case Labels():
            return {**size, "scores": answer.scores}
        case Mask():
            return {**size, **_write_mask(answer, image, source, predicting, palette)}
        case Boxes():
            return {**size, **_write_boxes(answer, image, source, predicting, palette)}


def _write_mask(
    answer: Mask, image: Image.Image, source: PhotoSource, predicting: Predicting, palette: Any
) -> dict[str, Any]:
    colors_256x3 = mask_colors(palette)
    index_HW = answer.index_HW.numpy()
    mask = Image.fromarray(index_HW)
    mask.putpalette(colors_256x3.tobytes())  # class indices stay, viewers show the colors
    row: dict[str, Any] = {"mask": f"masks/{source.stem}.png", "shares": answer.shares}
    _save(mask, predicting.out / row["mask"], "PNG", {"optimize": True})

    if predicting.pictures:
        row["picture"] = f"overlays/{source.stem}.jpg"
        painted = Image.fromarray(paint_mask(np.asarray(image), index_HW, colors_256x3))
        _save(painted, predicting.out / row["picture"], "JPEG", JPEG_OPTIONS)
    return row


def _write_boxes(
    answer: Boxes, image: Image.Image, source: PhotoSource, predicting: Predicting, palette: Any
) -> dict[str, Any]:
    rows = zip(
        answer.boxes_N4.tolist(), answer.classes_N.tolist(), answer.scores_N.tolist(), strict=True
    )
    found = [{"box": box, "class": index, "score": score} for box, index, score in rows]
    row: dict[str, Any] = {"boxes": found}

    if predicting.pictures:
        row["picture"] = f"drawn/{source.stem}.jpg"
        named = [
            (_shares(each["box"], image), each["class"], _caption(answer.classes, each))
            for each in found
            if each["score"] >= predicting.min_score
        ]
        text_px = max(MIN_TEXT_PX, image.height // TEXT_SHARE)
        drawn = Image.fromarray(draw_boxes(image, named, mask_colors(palette), text_px))
        _save(drawn, predicting.out / row["picture"], "JPEG", JPEG_OPTIONS)
    return row


def _shares(box: Sequence[float], image: Image.Image) -> list[float]:
    sides = (image.width, image.height) * 2
    return [value / side for value, side in zip(box, sides, strict=True)]


def _caption(classes: Sequence[str], found: Mapping[str, Any]) -> str:
    return f"{classes[found['class']]} {100 * found['score']:.0f} %"


def _save(image: Image.Image, path: Path, kind: str, options: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        image.save(partial, format=kind, **options)


def _write_summary(predictor: Any, rows: Sequence[Row], out: Path) -> None:
    """Write the answers to all photos in the format that others read."""
    classes = predictor.model_config.classes
    writers: dict[str, Callable[[], None]] = {
        "classifier": lambda: _write_labels(rows, classes, out),
        "segmenter": lambda: write_json(out / "masks.json", _about_masks(rows, predictor)),
        "detector": lambda: write_json(out / "boxes.json", coco_boxes(rows, classes)),
    }
    writers[predictor.kind]()


def _write_labels(rows: Sequence[Row], classes: Sequence[str], out: Path) -> None:
    write_json(out / "labels.json", {"classes": list(classes), "photos": list(rows)})
    with (
        replacing(out / "labels.csv") as partial,
        partial.open(
            "w",
            newline="",
            encoding="utf-8",
            errors="backslashreplace",  # a file's name may be no text
        ) as file,
    ):
        table = csv.writer(file)
        table.writerow(["photo", *classes])
        for row in rows:
            scores = [f"{row['scores'][name]:.6f}" for name in classes]
            table.writerow([row["photo"], *scores])


def _about_masks(rows: Sequence[Row], predictor: Segmenter) -> dict[str, Any]:
    config = predictor.model_config
    names = ("background", *config.classes)
    return {"classes": names, "palette": config.palette, "photos": list(rows)}


def coco_boxes(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Return detections in COCO's format: images, categories from 1, annotations with scores."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        size = {"width": row["width"], "height": row["height"]}
        images.append({"id": number, "file_name": row["photo"], **size})
        for each in row["boxes"]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **_coco_box(each)}
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _coco_box(found: Mapping[str, Any]) -> dict[str, Any]:
    x0, y0, x1, y1 = found["box"]
    width, height = x1 - x0, y1 - y0
    return {
        "category_id": found["class"] + 1,
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "score": found["score"],
    }
