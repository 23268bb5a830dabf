"""Weights of classes in the loss from how often they occur, so that rare ones are not drowned."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from colorgan.data import ClassCounts, ShardSet, count_classes, is_remote
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.downstream import DownstreamTask

# A class of a handful of images must not rule the loss.
MAX_WEIGHT = 100.0


def balanced_weights(shards: ShardSet, task: DownstreamTask, ranks: Ranks) -> Tensor:
    """Return one weight per output of a task, float32 on the ranks' device.

    Called on all ranks; rank 0 counts.

    Raises:
        UsageError: The set is behind URLs, or the task's loss takes no weights.
    """
    if task.targets == "boxes":
        raise UsageError(
            "class_weights: balanced is for classify and segment; the focal loss of detect "
            "weighs classes by itself"
        )
    if is_remote(shards):
        raise UsageError("class_weights: balanced reads all labels: copy the set to this machine")

    kind: Literal["mask", "classes"] = "mask" if task.targets == "mask" else "classes"
    # One reader: every rank reading all labels would multiply the load on a shared disk.
    counts = ranks.gather(count_classes(shards, kind) if ranks.main else None)[0]
    assert counts is not None
    weights_C = pixel_weights(counts) if kind == "mask" else positive_weights(counts)
    return weights_C.to(ranks.device)


def positive_weights(counts: ClassCounts) -> Tensor:
    """Return negatives over positives per class, C float32: both then weigh the same."""
    positives_C = np.maximum(counts.counts_C, 1)
    ratio_C = (counts.samples - counts.counts_C) / positives_C
    clipped_C = ratio_C.clip(1.0 / MAX_WEIGHT, MAX_WEIGHT)
    weights_C = np.where(counts.counts_C > 0, clipped_C, _weight_of_absent(counts))
    return torch.from_numpy(weights_C.astype(np.float32))


def _weight_of_absent(counts: ClassCounts) -> float:
    """Return the weight of a class that was not counted."""
    # One that never occurs has no positive to weigh. Among samples of a larger set it is rare.
    return 1.0 if counts.is_whole else MAX_WEIGHT


def pixel_weights(counts: ClassCounts) -> Tensor:
    """Return weights under which each class that occurs weighs the same over the set, C float32.

    Their mean over the pixels is 1, but for weights cut off at `MAX_WEIGHT`.
    """
    share_C = counts.counts_C / max(1, counts.counts_C.sum())
    num_present = max(1, int((share_C > 0).sum()))
    weights_C = np.full(len(share_C), _weight_of_absent(counts))
    # `where` leaves the weight of absent classes instead of infinity.
    np.divide(1.0, num_present * share_C, out=weights_C, where=share_C > 0)
    return torch.from_numpy(weights_C.clip(max=MAX_WEIGHT).astype(np.float32))
