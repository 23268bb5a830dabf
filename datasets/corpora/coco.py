"""COCO, 2014 and 2017 layouts: pictures in `train2017/`, objects in `annotations/instances_train2017.json`.

Without its annotation file (test, unlabeled, or not fetched) a split is just its pictures. With it, the JSON
is loaded once (450 MB for train: about 3 GB of memory, 20 s) and the records refer into it; nothing is
copied, no picture opened.
"""

import contextlib
import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from datasets.corpora.files import (
    inside,
    list_folder,
    list_pictures,
    record_key,
    require_files,
    require_folder,
)
from datasets.corpora.masks import CocoMask
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, Corpus, Record, label_of

SPLITS = ("train", "val", "test", "unlabeled")


def open_coco(root: Path, split: str) -> Corpus:
    """Opens a split of COCO.

    Args:
        root: the folder that holds `train2017/`, `annotations/` and so on.
        split: `train`, `val`, `test` or `unlabeled` of whichever year is there, or in full, `train2014`.

    Raises:
        CorpusError: a missing or ambiguous split, no picture, an annotation file that is malformed or does
            not fit.
    """
    folder = _split_folder(root, split)
    annotations = root / "annotations" / f"instances_{folder.name}.json"
    if annotations.is_file():
        return _labelled(split, folder, annotations)
    num_records = len(list_pictures(folder))
    if num_records == 0:
        raise CorpusError(f"{folder}: the split {split!r} is empty, no picture in this folder.")
    return Corpus("coco", split, (), (), num_records, functools.partial(_plain_records, folder))


def _split_folder(root: Path, split: str) -> Path:
    """Returns the folder that a split's name means."""
    require_folder(root, "give the COCO folder that holds train2017/ and annotations/ as --root")
    found = [
        e.name
        for e in list_folder(root)
        if e.is_dir() and re.fullmatch(rf"({'|'.join(SPLITS)})\d{{4}}", e.name)
    ]
    if split in found:
        return root / split
    if split not in SPLITS and not re.fullmatch(rf"({'|'.join(SPLITS)})\d{{4}}", split):
        raise CorpusError(
            f"{split!r} is no split of COCO: it has {', '.join(SPLITS)}, or in full e.g. train2017."
        )
    years = [name for name in found if name[:-4] == split]
    if len(years) > 1:
        raise CorpusError(
            f"{root}: the split {split!r} is ambiguous here, say which: {' or '.join(years)}."
        )
    if not years:
        raise CorpusError(
            f"{root}: no folder for the split {split!r}; there are: {', '.join(found) or 'none'}."
        )
    return root / years[0]


def _plain_records(folder: Path) -> Iterator[Record]:
    """The pictures of a split that has no annotations."""
    for name in list_pictures(folder):
        yield Record(record_key(name), folder / name, label_of([]))


def _labelled(split: str, folder: Path, annotations: Path) -> Corpus:
    """Opens a split with its annotation file."""
    index = _load(annotations)
    names, class_of = _categories(index, annotations)
    images = _images(index, annotations)
    if not images:
        raise CorpusError(
            f"{annotations}: the split {split!r} is empty, the file lists no picture."
        )
    for image in images:
        inside(folder, image["file_name"], annotations)
    require_files(folder, (image["file_name"] for image in images), annotations)
    with_masks = len(names) <= MAX_CLASSES
    palette = voc_palette(len(names)) if with_masks else ()
    records = functools.partial(
        _labelled_records, index, images, class_of, folder, annotations, with_masks
    )
    return Corpus("coco", split, names, palette, len(images), records)


def _load(annotations: Path) -> COCO:
    """Reads the JSON and indexes it by picture."""
    try:
        with annotations.open(encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{annotations}: not a readable JSON file ({error}).") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in parts):
        raise CorpusError(
            f"{annotations}: lacks one of the lists {', '.join(parts)}, so it is no instances file."
        )
    index = COCO()
    index.dataset = data
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            index.createIndex()
    except (KeyError, TypeError) as error:
        raise CorpusError(
            f"{annotations}: an entry lacks a part or is malformed ({error})."
        ) from error
    return index


def _categories(index: COCO, annotations: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Returns the class names by sorted category id, and each id's place among them."""
    names = {identity: category.get("name") for identity, category in sorted(index.cats.items())}
    if not names or not all(isinstance(name, str) for name in names.values()):
        raise CorpusError(f"{annotations}: its categories are missing or have no names.")
    if len(set(names.values())) < len(index.dataset["categories"]):
        raise CorpusError(f"{annotations}: a category stands in it twice.")
    return tuple(names.values()), {identity: place for place, identity in enumerate(names)}


def _images(index: COCO, annotations: Path) -> list[dict[str, Any]]:
    """Returns the entries of the pictures, sorted by file name, each name once."""
    images = list(index.imgs.values())
    kinds = {"file_name": str, "height": int, "width": int}
    for image in images:
        for part, kind in kinds.items():
            if not isinstance(image.get(part), kind):
                raise CorpusError(f"{annotations}: picture {image.get('id')} has no proper {part}.")
    if len({image["file_name"] for image in images}) < len(index.dataset["images"]):
        raise CorpusError(f"{annotations}: a picture stands in it twice.")
    return sorted(images, key=lambda image: str(image["file_name"]))


def _labelled_records(
    index: COCO,
    images: list[dict[str, Any]],
    class_of: dict[int, int],
    folder: Path,
    annotations: Path,
    with_masks: bool,
) -> Iterator[Record]:
    """The pictures of a split with their objects; a picture without objects is a record too."""
    for image in images:
        source = f"{annotations}: {image['file_name']}"
        found = index.imgToAnns.get(image["id"], [])
        places = [_place(annotation, class_of, source) for annotation in found]
        objects = [
            _object(annotation, place, source)
            for annotation, place in zip(found, places, strict=True)
        ]
        mask = CocoMask(
            tuple(zip(places, found, strict=True)), image["height"], image["width"], source
        )
        path = inside(folder, image["file_name"], annotations)
        yield Record(
            record_key(image["file_name"]), path, label_of(objects), mask if with_masks else None
        )


def _place(annotation: dict[str, Any], class_of: dict[int, int], source: str) -> int:
    """Returns the class index of an annotation."""
    category = annotation["category_id"]
    if category not in class_of:
        raise CorpusError(
            f"{source}: annotation {annotation['id']} is of category {category}, which is not listed."
        )
    return class_of[category]


def _object(annotation: dict[str, Any], place: int, source: str) -> dict[str, Any]:
    """One object of a label; COCO's box is x, y, width, height from the picture's corner."""
    try:
        x, y, width, height = np.asarray(annotation["bbox"], np.float64).tolist()
        if not np.isfinite([x, y, width, height]).all():
            raise ValueError("not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(
            f"{source}: annotation {annotation['id']} has no proper bbox ({error})."
        ) from error
    crowd = bool(annotation.get("iscrowd"))
    found = {
        "class": place,
        "box": [x, y, x + width, y + height],
        "difficult": False,
        "crowd": crowd,
    }
    area = annotation.get(
        "area"
    )  # of the outline, by which COCO tells small objects from large ones
    return (
        found | {"area": float(area)}
        if isinstance(area, int | float) and 0 <= area < np.inf
        else found
    )
