"""The contract between adapters and packer: a Corpus, its Records, and their Masks.

A record is small and picklable and opens nothing: images and masks are read later, in the packer's
workers. Mask planes: H x W uint8 class indices, 0 = background, i + 1 = `Corpus.classes[i]`, 255 =
void (not scored).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

VOID = 255
MAX_CLASSES = 254  # indices 1 to 254 in an 8-bit mask; 0 is background, 255 void


class Mask(Protocol):
    """A segmentation mask that is read when it is needed; picklable."""

    def read(self) -> NDArray[np.uint8]:
        """Return the H x W plane of class indices, of the size that the mask was made for."""
        ...


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a tar that is packed from in place.

    Attributes:
        tar: the file.
        name: of the member, for messages and keys.
        offset: of its bytes in the file.
        size: in bytes.
    """

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        """Return the source's name: the tar's path, then the member's."""
        return f"{self.tar}/{self.name}"


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of a corpus.

    Attributes:
        key: unique within the split, stable between runs, letters, digits, `_` and `-` only.
        image: the image file, or the member of a tar, not yet opened.
        label: plain JSON data. `classes`: sorted 0-based indices into `Corpus.classes`, over all
            objects, difficult ones and crowds too. `objects`: a list of `{"class": int, "box": [x0,
            y0, x1, y1], "difficult": bool, "crowd": bool}`, boxes in pixels, half-open; from COCO
            also `"area"`, the pixels that the object itself covers. Both empty where unlabelled.
        mask: None if the split has no masks.
        label_size: width and height that the label states for its image, in whose pixels boxes are
            given; None if it states none. shards/images/label_frame.py compares it with the image.
        fault: why the record cannot be packed; the packer lists it among the rejected. Empty if it
            can.
        dropped: one reason per object that was left out of the label.
    """

    key: str
    image: Path | TarMember
    label: dict[str, Any]
    mask: Mask | None = None
    label_size: tuple[int, int] | None = None
    fault: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files or labels of a corpus that become no record.

    Attributes:
        reason: in words that follow a count: "HEIC pictures, which cannot be read".
        count: how many.
        examples: up to three of them by name.
    """

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """One split of a corpus, opened.

    Attributes:
        name: `coco`, `voc`, `imagenet`, `folder` or `sample`.
        split: the split as it was asked for.
        classes: object classes without background; empty if unlabelled.
        palette: colors of the mask indices 0 to `len(classes)`; empty if there are no masks.
        num_records: how many records one pass yields; None if counting would cost a pass.
        records: starts a fresh pass: streaming, sorted, the same each time.
        note: what its user should know of how it is read; mostly empty.
        left_out: what lies beside the records and was not taken, by reason.

    Example:
        >>> corpus = open_voc(Path("VOCdevkit"), "2012-seg-val")
        >>> for record in corpus.records(): ...
    """

    name: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_records: int | None
    records: Callable[[], Iterator[Record]]
    note: str = ""
    left_out: tuple[LeftOut, ...] = ()


def label_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the label of an image with these objects; see `Record.label`."""
    # From the objects, so that the two can never disagree.
    return {"classes": sorted({item["class"] for item in objects}), "objects": objects}
