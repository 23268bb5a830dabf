"""Frozen features of each level of an encoder, for probes that train no network.

Each level is averaged over a square grid to about 9,000 numbers per image, as by Goyal et al.
("Scaling and Benchmarking Self-Supervised Visual Representation Learning", ICCV 2019, section 6.1),
so that levels of different sizes are compared at one cost. A pretrained encoder is compared with
the same network with random weights.

Shape legend: N images of a set, B of a micro-batch, C classes, D numbers of a level; H = W = image
size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.data import Loader
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.models.modes import evaluating, initialise, using_inference
from colorgan.models.unet import FeaturePyramid

NUMBERS_PER_LEVEL = 9000

Shown = Callable[[int], None]


@dataclass(frozen=True)
class Features:
    """The features of a labelled set; one row per image, in the order of the set.

    Attributes:
        levels: each level's features, float32 N x D on the CPU, largest level first.
        positives_NC: bool, difficult objects included.
        difficult_NC: bool, the class is in the image as difficult objects only.
        sample_ids_N: int64, numbers in the set; images that could not be read are missing.
    """

    levels: tuple[Tensor, ...]
    positives_NC: Tensor
    difficult_NC: Tensor
    sample_ids_N: Tensor


@dataclass(frozen=True)
class LevelGrid:
    """The size of a level: its channels, its side, and the side of the grid it is averaged over."""

    channels: int
    side: int
    grid: int


def grid_side(channels: int, side: int, numbers: int = NUMBERS_PER_LEVEL) -> int:
    """Return the side, 1 to `side`, with channels * side**2 nearest to `numbers`."""
    # The nearest below or above: a level of many channels cannot come close.
    return min(range(1, side + 1), key=lambda grid: abs(channels * grid * grid - numbers))


def level_grids(encoder: FeaturePyramid, image_size: int) -> list[LevelGrid]:
    """Return the size of each level, largest level first."""
    # Looked at, not computed from strides: 55 rows, not 56, leave AlexNet's first convolution.
    device = next(encoder.parameters()).device
    with evaluating(encoder), torch.inference_mode():
        levels = encoder(torch.zeros(1, 1, image_size, image_size, device=device))

    grids = []
    for level_BCHW in levels:
        channels, side = level_BCHW.shape[1], level_BCHW.shape[2]
        grids.append(LevelGrid(channels, side, grid_side(channels, side)))
    return grids


def extract_features(
    encoder: FeaturePyramid, loader: Loader, ranks: Ranks, shown: Shown = lambda done: None
) -> Features:
    """Return the features of a set with targets "classes", with running statistics.

    Called on all ranks; the same result on all. Levels are gathered one after the other: a rank
    holds its part of the set and one whole level.

    Args:
        encoder: on the ranks' device.
        loader: of this rank's part of the set, each image once over all ranks.
        ranks: that share the set.
        shown: called with the number of images that this rank has done.

    Raises:
        TrainingError: no image could be read, or a feature is NaN or infinite.
    """
    # Pooled on the way: whole maps of a set would not fit in memory.
    levels: list[list[Tensor]] = [[] for _ in encoder.channels]
    labels: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    with using_inference(encoder, "running"), evaluating(encoder), torch.inference_mode():
        for batch in loader.eval_batches():
            assert batch.classes_BC is not None and batch.difficult_BC is not None
            for rows, level_BCHW in zip(
                levels,
                encoder(batch.lab_B3HW[:, :1]),
                strict=True,
            ):
                rows.append(pooled(level_BCHW))
            classes_BC = batch.classes_BC.cpu().bool()
            labels.append((batch.sample_ids_B, classes_BC, batch.difficult_BC.cpu()))
            done += len(batch.sample_ids_B)
            shown(done)

    gathered = [part for each in ranks.gather(labels) for part in each]
    if not gathered:
        raise TrainingError(
            "none of the images could be read: check them with launcher/pack.py --verify DIR"
        )

    ids, positives, difficult = (torch.cat([part[i] for part in gathered]) for i in range(3))
    # Ranks have read their parts in any order.
    order = ids.argsort()
    whole = tuple(_gathered_level(rows, ranks)[order] for rows in levels)
    if not all(level.isfinite().all() for level in whole):
        raise TrainingError(
            "the encoder's features are NaN or infinite: its weights are damaged, or diverged"
        )
    return Features(
        whole,
        positives[order],
        difficult[order],
        ids[order],
    )


def pooled(level_BCHW: Tensor) -> Tensor:
    """Return a level averaged over its grid (`grid_side`), float32 B x D on the CPU."""
    channels, side = level_BCHW.shape[1], level_BCHW.shape[2]
    return F.adaptive_avg_pool2d(level_BCHW.float(), grid_side(channels, side)).flatten(1).cpu()


def _gathered_level(rows: list[Tensor], ranks: Ranks) -> Tensor:
    """Return all ranks' rows of one level, rank after rank. Called on all ranks."""
    mine = torch.cat(rows) if rows else None
    rows.clear()  # half of the memory that would be held at once
    return torch.cat([each for each in ranks.gather(mine) if each is not None])


def random_encoder(
    encoder: FeaturePyramid,
    seed: int,
    loader: Loader,
    ranks: Ranks,
    shown: Shown = lambda done: None,
) -> None:
    """Draw the encoder's weights from a seed and give its norms the statistics of a set.

    Without statistics of its own its norms would not normalize, an unfair comparison. They are the
    means over micro-batches of each one's mean and unbiased variance, weighted by their images
    (PreciseBN: Wu and Johnson, "Rethinking Batch in BatchNorm", 2021), in one pass over the set. A
    micro-batch is the same on any number of ranks, so the result is too.

    Called on all ranks; changes `encoder`.

    Raises:
        TrainingError: no image could be read.
    """
    # Norms too: `initialise` leaves what they have learned.
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm2d | nn.InstanceNorm2d):
            part.reset_parameters()  # what was learned
    initialise(encoder, seed)
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        return

    rows = _micro_batch_statistics(encoder, norms, loader, shown)
    gathered = sorted((row for each in ranks.gather(rows) for row in each), key=lambda row: row[0])
    if not gathered:
        raise TrainingError(
            "none of the images could be read: check them with launcher/pack.py --verify DIR"
        )

    # In the order of the set: float sums then do not depend on the number of ranks.
    num_images = sum(number for _, number, _ in gathered)
    weighted = torch.stack([statistics * number for _, number, statistics in gathered])
    # Weighted by images, as the last micro-batch may be short.
    _set_statistics(norms, weighted.sum(0) / num_images)


def _micro_batch_statistics(
    encoder: FeaturePyramid, norms: list[nn.BatchNorm2d], loader: Loader, shown: Shown
) -> list[tuple[int, int, Tensor]]:
    """Return first position, number of images and norm statistics of this rank's micro-batches."""
    rows: list[tuple[int, int, Tensor]] = []
    # Restored afterwards: the encoder is used again.
    momenta = [norm.momentum for norm in norms]
    encoder.train()
    for norm in norms:
        norm.momentum = 1.0  # the running statistics are then the last micro-batch's

    with torch.no_grad():
        for batch in loader.eval_batches():
            encoder(batch.lab_B3HW[:, :1])
            rows.append((int(batch.positions_B[0]), len(batch.positions_B), _statistics(norms)))
            shown(sum(number for _, number, _ in rows))

    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()
    return rows


def _statistics(norms: list[nn.BatchNorm2d]) -> Tensor:
    """Return running means and variances of all norms in one vector, float64 on the CPU."""
    # float64: thousands of micro-batches are summed.
    return torch.cat([buffer.double().cpu() for norm in norms for buffer in _buffers(norm)])


def _set_statistics(norms: list[nn.BatchNorm2d], statistics: Tensor) -> None:
    buffers = [buffer for norm in norms for buffer in _buffers(norm)]
    parts = torch.split(statistics, [len(buffer) for buffer in buffers])
    for buffer, values in zip(buffers, parts, strict=True):
        buffer.copy_(values)


def _buffers(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var
