"""Read an instances file in COCO's format: categories, images, and each image's annotations.

The file is read whole (450 MB for COCO's train: about 3 GB of memory, 20 s) and its parts are
referred to, not copied. One bad entry costs itself: an annotation its object, an image its record.
A file of which nothing can be used is refused.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from datasets.corpora.class_lists import one_line
from datasets.corpora.files import Skipped, leads_out
from datasets.corpora.objects import box_fault, is_crowd, number_of, object_of
from datasets.errors import CorpusError

PARTS = ("images", "annotations", "categories")
MAX_JSON_BYTES = 8 << 30  # the largest in use (Objects365) has 5.4 GB
MAX_ID_DIGITS = 30
MAX_SIDE = 1_000_000  # pixels
MAX_AREA = float(MAX_SIDE) ** 2
MAX_SHOWN = 40  # characters of a wrong value in a message

Annotation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of the file.

    Attributes:
        id: as `plain_id` gives it.
        name: of the file, with `/` between folders; leads out of no folder.
        size: width and height that the file states; None if it states none.
        fault: why it cannot become a record; empty if it can.
    """

    id: str
    name: str
    size: tuple[int, int] | None
    fault: str


@dataclass(frozen=True)
class Instances:
    """An instances file, checked as far as its entries go together.

    Attributes:
        source: the file.
        classes: names of the categories, by category id.
        class_of: the index in `classes` of each category id.
        images: sorted by file name, each name once.
        annotations: of each image id, in the order of the file.
        left_out: annotations that belong to no image.
    """

    source: Path
    classes: tuple[str, ...]
    class_of: dict[str, int]
    images: list[ImageEntry]
    annotations: dict[str, list[Annotation]]
    left_out: Skipped

    def objects_of(self, image: ImageEntry) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Return the objects of an image, and why others were dropped."""
        objects, dropped = [], []
        for annotation in self.annotations.get(image.id, []):
            found = self._object(annotation, image)
            if isinstance(found, str):
                dropped.append(f"{found}: annotation {annotation.get('id')}")
            else:
                objects.append(found)
        return objects, tuple(dropped)

    def class_of_annotation(self, annotation: Annotation) -> int | None:
        """Return the class index of an annotation; None if its category is not listed."""
        identity = plain_id(annotation.get("category_id"))
        return None if identity is None else self.class_of.get(identity)

    def _object(self, annotation: Annotation, image: ImageEntry) -> dict[str, Any] | str:
        """Return an annotation's object, or why it has none.

        COCO's box is x, y, width, height from the corner.
        """
        class_index = self.class_of_annotation(annotation)
        if class_index is None:
            category = annotation.get("category_id")
            return f"its category is not listed ({category!r})"

        written = annotation.get("bbox")
        if not written:
            return "it has no bbox"
        try:
            x, y, width, height = np.asarray(written, np.float64).tolist()
        except (TypeError, ValueError, OverflowError):
            return f"its bbox is not four numbers ({str(written)[:MAX_SHOWN]})"

        box = (x, y, x + width, y + height)
        fault = box_fault(box, image.size)
        if fault:
            return fault

        item = object_of(class_index, box, difficult=False, crowd=is_crowd(annotation))

        # The area of the outline, by which COCO tells small objects from large ones.
        area = number_of(annotation.get("area"))
        if area is not None and 0 <= area <= MAX_AREA:
            item["area"] = area
        return item


def plain_id(value: Any) -> str | None:
    """Return an id as text, so that 139, 139.0, "139" and "000000000139" are one.

    None if it is no id.
    """
    # True would be 1.
    if isinstance(value, bool):
        return None
    # Tables that were read by pandas have ids such as 139.0.
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        return None

    # File names as ids have leading zeros; what is no number is compared as it is.
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS:
        return str(int(text))
    return text


def read_instances(path: Path) -> Instances:
    """Read an instances file.

    Raises:
        CorpusError: no such file, no entry that can be used, or entries that contradict each other.
    """
    data = _load(path)
    classes, class_of = _categories(data["categories"], path)
    images = _images(data["images"], path)
    annotations, left_out = _by_image(data["annotations"], images, path)

    instances = Instances(path, classes, class_of, images, annotations, left_out)
    # A list in an unknown form would be a set without any label, packed for hours.
    _check_some_object(instances)
    return instances


def _load(path: Path) -> dict[str, Any]:
    try:
        # Before reading: in memory it takes some seven times its size.
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CorpusError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; split it by images.")
        # From bytes json tells UTF-8, with or without a byte order mark, from UTF-16.
        with path.open("rb") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not a readable JSON file ({error}).") from error

    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in PARTS):
        raise CorpusError(
            f"{path}: lacks one of the lists {', '.join(PARTS)}, so it is no instances file."
        )
    return data


def _categories(entries: list[Any], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names by category id, and the index of each id."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        identity = plain_id(fields.get("id"))
        if identity is None:
            raise CorpusError(f"{path}: its categories are missing or have no ids.")
        name = _class_name(identity, fields.get("name"), path)

        if identity in names or name in taken:
            raise CorpusError(f"{path}: lists the category {name!r} (id {identity}) twice.")
        names[identity] = name
        taken.add(name)
    if not names:
        raise CorpusError(f"{path}: lists no categories.")

    # Numbers by value, then texts by letter.
    order = sorted(
        names,
        key=lambda identity: (not identity.isdigit(), len(identity), identity),
    )
    classes = tuple(names[identity] for identity in order)
    return classes, {identity: index for index, identity in enumerate(order)}


def _class_name(identity: str, written: Any, path: Path) -> str:
    """Return the name of a category.

    Raises:
        CorpusError: it has none, or one that no file can hold.
    """
    if not isinstance(written, str):
        shown = "has no name" if written is None else f"has the name {str(written)[:MAX_SHOWN]}"
        raise CorpusError(f"{path}: the category {identity} {shown}; write a name in quotes.")
    # JSON can escape half of a character, which no UTF-8 file holds.
    if not _is_text(written):
        raise CorpusError(
            f"{path}: the name of the category {identity}, {written[:MAX_SHOWN]!r}, holds half "
            "of a character; write it in UTF-8."
        )
    return one_line(written)


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _images(entries: list[Any], path: Path) -> list[ImageEntry]:
    """Return the images, sorted by file name.

    Those of other names are checked to lead out of no folder.
    """
    images = [_image(entry, path) for entry in entries]
    usable = [image for image in images if not image.fault]
    if images and not usable:
        raise CorpusError(f"{path}: no entry of its images can be used: {images[0].fault}.")

    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for image in images:
        if image.id in ids:
            raise CorpusError(
                f"{path}: gives the id {image.id} to {ids[image.id]} and to {image.name}; give "
                "each its own."
            )
        if image.name in names:
            raise CorpusError(
                f"{path}: lists the file {image.name} twice, as pictures {names[image.name]} and "
                f"{image.id}; remove one."
            )
        ids[image.id] = image.name
        names[image.name] = image.id
    return sorted(images, key=lambda image: image.name)


def _image(entry: Any, path: Path) -> ImageEntry:
    if not isinstance(entry, dict):
        raise CorpusError(f"{path}: an entry of its images is malformed ({str(entry)[:40]}).")

    identity = plain_id(entry.get("id"))
    name = _file_name(entry)
    if identity is None or name is None:
        missing = "file_name" if identity is not None else "id"
        raise CorpusError(f"{path}: picture {entry.get('id')} has no proper {missing}.")
    # Checked now, when no path is made of it yet.
    if leads_out(name):
        raise CorpusError(
            f"{path}: names {name!r}, which is no file inside the folder of its pictures; give the "
            "names relative to that folder."
        )

    width, height = _side(entry.get("width")), _side(entry.get("height"))
    if width is None or height is None:
        # The reason comes first: the packer counts pictures by it.
        side = "height" if width else "width"
        fault = f"it has no proper {side} in {path.name}: picture {entry['id']}"
        return ImageEntry(identity, name, None, fault)
    return ImageEntry(identity, name, (width, height), "")


def _file_name(entry: dict[str, Any]) -> str | None:
    """Return the file's name.

    LVIS has only the URL, whose path ends in `train2017/000000000139.jpg`.
    """
    name = entry.get("file_name")
    if isinstance(name, str) and name:
        # Tools on Windows write backslashes.
        return name.replace("\\", "/").removeprefix("./")

    url = entry.get("coco_url")
    if isinstance(url, str):
        return urlsplit(url).path.lstrip("/") or None
    return None


def _side(value: Any) -> int | None:
    """Return a width or height in pixels; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_side = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE
    return value if is_side else None


def _by_image(
    entries: list[Any], images: list[ImageEntry], path: Path
) -> tuple[dict[str, list[Annotation]], Skipped]:
    """Return the annotations by image id, and those that belong to none."""
    # Also those with a fault: their annotations belong to somebody.
    known = {image.id for image in images}
    annotations: dict[str, list[Annotation]] = defaultdict(list)
    left_out = Skipped()

    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        identity = plain_id(fields.get("image_id"))
        if identity is not None and identity in known:
            annotations[identity].append(fields)
            continue

        shown = f"annotation {fields['id']}" if "id" in fields else str(entry)[:MAX_SHOWN]
        left_out.add(f"annotations of {path.name} that belong to no picture it lists", shown)

    if entries and images and not annotations:
        first = entries[0].get("image_id") if isinstance(entries[0], dict) else entries[0]
        raise CorpusError(
            f"{path}: none of its {len(entries):,} annotations belongs to a picture that it lists: "
            f"the first has image_id {str(first)[:40]!r}, the first picture has id "
            f"{images[0].id!r}."
        )
    return dict(annotations), left_out


def _check_some_object(instances: Instances) -> None:
    """Refuse a file none of whose annotations gives an object."""
    reason = ""
    for image in instances.images:
        objects, dropped = instances.objects_of(image)
        # Mostly the first image has one: a good file costs no pass over all annotations.
        if objects:
            return
        if dropped and not reason:
            reason = dropped[0]

    if reason:
        raise CorpusError(f"{instances.source}: none of its annotations can be used: {reason}.")
