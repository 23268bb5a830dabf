"""Read one XML annotation in VOC's format: its objects, and the size that it states.

Parsed by defusedxml: no entities, no document type, no files of others. Only `name` and `bndbox` of
an object are needed; `pose`, `truncated`, `difficult` and `part` may be missing or there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException, DTDForbidden

from datasets.corpora.class_lists import one_line
from datasets.corpora.objects import Box, box_fault, object_of
from datasets.errors import CorpusError

MAX_XML_BYTES = 4_000_000  # the largest of VOC2012 has 22 kB


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one XML file holds.

    Attributes:
        objects: as `Record.label` has them; difficult ones are kept and marked.
        dropped: why other objects were left out.
        size: width and height that it states; None if it states none.
    """

    objects: list[dict[str, Any]]
    dropped: tuple[str, ...]
    size: tuple[int, int] | None


def read_annotation(path: Path, class_of: dict[str, int]) -> Annotation:
    """Read the objects of one XML file.

    Args:
        path: the file.
        class_of: the index of each class name; objects of other classes are dropped.

    Raises:
        CorpusError: the file is missing, malformed or hostile.
    """
    tree = _tree(path)
    size = _size(tree)

    # Objects are named by their number: names repeat.
    objects, dropped = [], []
    for number, item in enumerate(tree.findall("object"), start=1):
        name = _name(item)
        try:
            objects.append(_object(item, name, class_of, size))
        except ValueError as error:
            dropped.append(f"{error}: object {number}")
    return Annotation(objects, tuple(dropped), size)


def read_class_names(path: Path) -> Iterator[str]:
    """Yield the class name of each object; none if the file cannot be read."""
    try:
        tree = _tree(path)
    except CorpusError:
        return
    for item in tree.findall("object"):
        name = _name(item)
        if name:
            yield name


def _tree(path: Path) -> Element:
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise CorpusError(
                f"{path}: is larger than {MAX_XML_BYTES:,} bytes, so it is no annotation of VOC."
            )
        tree: Element = defusedxml.ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except DTDForbidden as error:
        raise CorpusError(
            f"{path}: has a <!DOCTYPE> declaration, which could make a parser open other files, so "
            "it is not read; remove that line."
        ) from error
    except DefusedXmlException as error:
        raise CorpusError(f"{path}: defines entities, which annotations never need.") from error
    except (OSError, ParseError, ValueError, LookupError) as error:
        raise CorpusError(f"{path}: is no XML file that can be read ({error}).") from error
    # Some tools declare a namespace, which would be part of each tag.
    for item in tree.iter():
        item.tag = item.tag.rpartition("}")[2]
    return tree


def _size(tree: Element) -> tuple[int, int] | None:
    """Return the stated width and height; None if they are missing, or 0 as some tools write."""
    try:
        # By float: some tools write 500.0.
        width, height = (int(float(_text(tree, f"size/{side}"))) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _name(item: Element) -> str:
    return one_line(item.findtext("name") or "")


def _object(
    item: Element, name: str, class_of: dict[str, int], size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return one object; VOC's boxes count pixels from 1 and include the last, ours are half-open.

    Raises:
        ValueError: why it is dropped.
    """
    # Dropped and counted: VOC's person layout has heads and hands as objects, too.
    if name not in class_of:
        raise ValueError(
            f"its class is unknown; classes.txt can list your own ({name or 'no name'})"
        )

    # Boxes of other tools may begin at pixel 0: half a pixel more at the border is no reason to
    # drop them.
    x0, y0, x1, y1 = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    box: Box = (
        max(0.0, x0 - 1),
        max(0.0, y0 - 1),
        x1,
        y1,
    )
    fault = box_fault(box, size)
    if fault:
        raise ValueError(fault)

    difficult = bool(_number(item, "difficult")) if _text(item, "difficult") else False
    return object_of(class_of[name], box, difficult=difficult, crowd=False)


def _number(item: Element, part: str) -> float:
    text = _text(item, part)
    if not text:
        raise ValueError(f"it has no {part}")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"its {part} is no number ({text[:40]!r})") from error


def _text(item: Element, part: str) -> str:
    return (item.findtext(part) or "").strip()
