"""Tell what the masks of a folder hold: class indices, one class of 0 and 255, or colors.

Masks are read once, up to the first with a higher index if classes.txt names several classes.
Without that file the classes are called class1, class2, ...: write it for a large set. Values that
look like the soft edges of masks of 0 and 255 are never taken for indices.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.corpora.class_lists import LabelMap
from datasets.corpora.masks import FULL, BinaryMask, ColorMask, IndexMask, read_plane
from datasets.errors import CorpusError
from shards.records import VOID, Mask

# Indices without classes.txt are low and mostly all there; the greys of soft edges reach high, and
# classes that were spread over 0..255 to be visible leave gaps.
MAX_UNNAMED_INDEX = 99
MIN_SPREAD_INDEX = 32
MAX_GAP = 8


@dataclass(frozen=True, slots=True)
class MaskKind:
    """How the masks of a split are read.

    Attributes:
        classes: names of the indices from 1 on.
        note: what they hold, in words.
        binary: one class of 0 and 255, or of the values from `threshold` on.
        threshold: see `BinaryMask`.
        colors: the classes of color-coded masks.
    """

    classes: tuple[str, ...]
    note: str
    binary: bool = False
    threshold: int | None = None
    colors: LabelMap | None = None

    def mask(self, path: Path) -> Mask:
        """Return the mask in a file."""
        if self.colors is not None:
            return ColorMask(path, self.colors.values, self.colors.path)
        if self.binary:
            return BinaryMask(path, self.threshold)
        return IndexMask(path, len(self.classes))


@dataclass
class _Seen:
    """What the masks read so far hold, without background.

    Attributes:
        values: all values but 0.
        only: a mask that holds just this value, for 1 and 255.
        has_indices: a value from 2 to 254, or 1 beside 255, which then is void.
        fault: of the first mask that cannot be read.
        num_read: masks that could be read.
    """

    values: set[int] = field(default_factory=set)
    only: dict[int, Path] = field(default_factory=dict)
    has_indices: bool = False
    fault: CorpusError | None = None
    num_read: int = 0

    @property
    def largest(self) -> int:
        """Return the highest value beside 255."""
        return max(self.values - {VOID}, default=0)

    def add(self, path: Path) -> None:
        """Read one more; one that cannot be read is left to the packer, which names it."""
        try:
            plane = read_plane(path)
        except CorpusError as error:
            self.fault = self.fault or error
            return

        self.num_read += 1
        # Counts, not np.unique, which sorts every pixel.
        counts = np.bincount(plane.ravel().astype(np.int64))
        values = set(counts.nonzero()[0].tolist()) - {0}
        if len(values) == 1:
            self.only.setdefault(min(values), path)
        self.values |= values
        is_index = max(values - {VOID}, default=0) > 1 or values == {1, VOID}
        self.has_indices = self.has_indices or is_index


def color_kind(colors: LabelMap) -> MaskKind:
    """Return the kind of masks whose colors a file lists."""
    note = f"the masks' colors are those of {colors.path.name}"
    return MaskKind(colors.classes, note, colors=colors)


def survey(
    folder: Path, masks: Iterable[Path], names: tuple[str, ...], threshold: int | None
) -> MaskKind:
    """Return what masks hold.

    Args:
        folder: where they are, for messages.
        masks: the files.
        names: of the classes; empty if none are given.
        threshold: take the values from this one on for one class.

    Raises:
        CorpusError: no mask can be read, or they fit no classes, or fit them in two ways.
    """
    if threshold is not None:
        return _cut(folder, names, threshold)

    seen = _Seen()
    for path in masks:
        seen.add(path)
        # Enough is known then: a large set is not read to its end.
        if seen.has_indices and len(names) > 1:
            break

    # One that can be read is enough: the packer names the others.
    if seen.num_read == 0 and seen.fault is not None:
        raise seen.fault
    if seen.has_indices:
        return _indices(folder, names, seen)
    return _one_class(folder, names, seen)


def _cut(folder: Path, names: tuple[str, ...], threshold: int) -> MaskKind:
    if len(names) > 1:
        raise CorpusError(
            f"{folder}: a mask_threshold makes one class, but classes.txt names {len(names)}."
        )
    note = f"the masks' values from {threshold} on are the class"
    return MaskKind(
        names or ("class1",),
        note,
        binary=True,
        threshold=threshold,
    )


def _indices(folder: Path, names: tuple[str, ...], seen: _Seen) -> MaskKind:
    """Return the kind of masks of class indices; refuse those that cannot be indices."""
    num_values = len(seen.values - {VOID})

    # One of three signs that the values are no indices.
    is_high = seen.largest > MAX_UNNAMED_INDEX
    has_gaps = seen.largest >= MIN_SPREAD_INDEX and num_values * MAX_GAP < seen.largest
    exceeds_one_name = len(names) == 1 and seen.largest > 1

    if exceeds_one_name or (not names and (is_high or has_gaps)):
        raise CorpusError(
            f"{folder}: the masks hold {num_values} values up to {seen.largest} beside 0 and 255. "
            "If these are the soft edges of one class, cut them with --mask_threshold 128; if they "
            "are class indices, list all classes in classes.txt, one per line."
        )
    return _named(names, seen.largest, "the masks hold indices of classes; 255 is void")


def _one_class(folder: Path, names: tuple[str, ...], seen: _Seen) -> MaskKind:
    """Return the kind of masks that hold nothing but 0 and 1, or 0 and 255."""
    ones, full = seen.only.get(1), seen.only.get(FULL)

    # Two tools, or one that was set in two ways: guessing would make an object void, or void one.
    if ones and full and len(names) <= 1:
        raise CorpusError(
            f"{folder}: {ones.name} holds 0 and 1 only, {full.name} 0 and 255 only, so that 255 "
            "may be the class or void: write all masks in one way."
        )
    if full and not ones:
        if len(names) > 1:
            raise CorpusError(
                f"{folder}: the masks hold 0 and 255 only, one class, but classes.txt names "
                f"{len(names)}."
            )
        note = "the masks hold 0 and 255: 255 is the class"
        return MaskKind(names or ("class1",), note, binary=True)

    if seen.largest == 0 and not names:
        raise CorpusError(
            f"{folder}: the masks hold only background and void, no class; add classes.txt."
        )
    if len(names) <= 1:
        return _named(names, 1, "the masks hold 0 and 1: 1 is the class")
    return _named(names, seen.largest, "the masks hold indices of classes; 255 is void")


def _named(names: tuple[str, ...], num_classes: int, note: str) -> MaskKind:
    unnamed = tuple(f"class{index}" for index in range(1, num_classes + 1))
    return MaskKind(names or unnamed, note)
