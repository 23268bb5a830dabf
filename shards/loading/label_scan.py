"""Labels of a set without its images: whether there are any, and how often each class occurs.

Read in one process before training, so that a task on a set without its labels is refused at once
and rare classes can weigh more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.loading.members import BadSampleError, Members, MemberSpec, read_labels
from shards.loading.shard_set import ShardSet
from shards.storage.shard_files import ShardFiles

LabelKind = Literal["classes", "mask", "boxes"]

# Samples that are looked at for the first label, spread over the set.
MAX_SEARCHED = 10_000
# Samples that are counted, spread over the set: enough for frequencies to two digits.
MAX_COUNTED = 5_000


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs in the samples that were looked at.

    Attributes:
        samples: Number of samples.
        counts_C: Per class the samples that show it; with masks the pixels, background first.
        is_whole: Whether that were all samples of the set.
    """

    samples: int
    counts_C: NDArray[np.int64]
    is_whole: bool = True


def has_labels(shards: ShardSet, kind: LabelKind) -> bool:
    """Return whether any sample has a class, or a box, or a mask; stops at the first.

    Of a set behind URLs only masks are judged: the search could fetch all of it.
    """
    if kind == "mask":
        return shards.has_masks
    if is_remote(shards):
        return True
    return any(_has_label(members, kind) for members in _labels(shards, kind, MAX_SEARCHED))


def is_remote(shards: ShardSet) -> bool:
    """Return whether some shards are behind URLs."""
    return any(shard.is_remote for manifest in shards.manifests for shard in manifest.shards)


def count_classes(shards: ShardSet, kind: LabelKind) -> ClassCounts:
    """Count the classes of at most `MAX_COUNTED` samples of a set, without unreadable ones."""
    counts_C = np.zeros(len(shards.classes) + (kind == "mask"), np.int64)
    samples = 0
    for members in _labels(shards, kind, MAX_COUNTED):
        samples += 1
        if members.mask is not None:
            with Image.open(io.BytesIO(members.mask)) as mask:
                # 256 bins whatever the classes: 255 marks void, which is cut off below.
                pixels_256 = np.bincount(np.asarray(mask).ravel(), minlength=256)
            counts_C += pixels_256[: len(counts_C)]
        elif members.label is not None:
            counts_C += members.label.present > 0
        elif members.objects is not None:
            counts_C[np.unique(members.objects.classes_N)] += 1
    return ClassCounts(samples, counts_C, shards.num_samples <= MAX_COUNTED)


def _has_label(members: Members, kind: LabelKind) -> bool:
    if kind == "boxes":
        return members.objects is not None and len(members.objects.classes_N) > 0
    return members.label is not None and bool(members.label.present.any())


def _labels(shards: ShardSet, kind: LabelKind, most: int) -> Iterator[Members]:
    """Yield the labels of at most `most` samples, spread over the set."""
    number = min(most, shards.num_samples)
    # Spread, as packed sets are often sorted by class.
    ids = np.linspace(0, shards.num_samples - 1, number).round().astype(np.int64)
    spec = MemberSpec(
        classes=None if kind == "mask" else shards.classes,
        boxes=kind == "boxes",
        mask=kind == "mask",
    )
    files = ShardFiles()
    try:
        for row in shards.rows(ids):
            try:
                yield read_labels(shards, row, spec, files.read_at)
            # Training replaces it and reports it; a count can do without it.
            except BadSampleError:
                continue
    finally:
        files.close()
