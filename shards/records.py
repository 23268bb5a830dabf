"""What every adapter gives to the packer: a Corpus, its Records, and the Masks that they point to.

A record is small and picklable and opens nothing: pictures and masks are read later, in the packer's workers.
Mask planes: H x W uint8 class indices, 0 = background, i + 1 = `Corpus.classes[i]`, 255 = void (not scored).
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
        """Returns the H x W plane of class indices, of the size of the stored, unrotated picture."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of a corpus.

    Attributes:
        key: unique within the split, stable between runs, letters, digits, `_` and `-` only.
        image: the picture, not yet opened.
        label: plain JSON data. `classes`: sorted 0-based indices into `Corpus.classes`, over all objects,
            difficult ones and crowds too. `objects`: a list of `{"class": int, "box": [x0, y0, x1, y1],
            "difficult": bool, "crowd": bool}`, boxes in pixels of the stored, unrotated picture, half-open; from COCO
            also `"area"`, the pixels of that picture that the object itself covers.
            Both empty where unlabelled.
        mask: None where the split has no masks.
    """

    key: str
    image: Path
    label: dict[str, Any]
    mask: Mask | None = None


@dataclass(frozen=True)
class Corpus:
    """One split of a corpus, opened.

    Attributes:
        name: `coco`, `voc`, `imagenet`, `folder` or `sample`.
        split: the split as it was asked for.
        classes: object classes without background; empty where unlabelled.
        palette: colours of the mask indices 0 to `len(classes)`; empty where there are no masks.
        num_records: how many records one pass gives, None where counting would cost a pass.
        records: starts a fresh pass: streaming, sorted, the same each time.
        note: what its user should know of how it is read; mostly empty.

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


def label_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The label of a picture with these objects; see `Record.label`."""
    return {"classes": sorted({item["class"] for item in objects}), "objects": objects}
