"""How well a generator reconstructs luminance, for the control that does not color.

Its numbers stand beside those of a flat picture: each photo's mean luminance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from colorgan.data import Batch
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.generator_scores import table_of_all_ranks
from colorgan.models.colorizing import color_normalised
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys

# Lab units of a normalised 1 of L' = L/50 - 1.
LIGHTNESS_SCALE = 50.0


def score_reconstruction(
    generator: nn.Module,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    seed: int = 0,
    autocast: torch.autocast | None = None,
) -> dict[str, float]:
    """Return the mean L1 of the reconstructed luminance, that of flat pictures, and `images`.

    In units of L, averaged in the order of the images. Called on all ranks; the same on all.

    Args:
        generator: Of target luminance; left in the mode it was in.
        batches: This rank's share of the held-out images.
        ranks: This process's place among the ranks.
        seed: Of the dropout of "paper" inference.
        autocast: The precision of the forward pass; None: float32.

    Raises:
        TrainingError: No rank scored an image.
    """
    sample_ids: list[int] = []
    rows: list[list[float]] = []
    with evaluating(generator):
        for batch in batches:
            luminance_B1HW = batch.lab_B3HW[:, :1]
            set_dropout_keys(generator, dropout_keys(seed, batch.positions_B))
            # The one channel of this generator is its luminance.
            output_B1HW = color_normalised(generator, luminance_B1HW, autocast)
            flat_B1HW = luminance_B1HW.mean(dim=(2, 3), keepdim=True).expand_as(luminance_B1HW)
            errors = [
                (each - luminance_B1HW).abs().double().mean(dim=(1, 2, 3)) * LIGHTNESS_SCALE
                for each in (output_B1HW, flat_B1HW)
            ]
            sample_ids += batch.sample_ids_B.tolist()
            rows += torch.stack(errors, dim=1).tolist()

    table = table_of_all_ranks(sample_ids, rows, ranks)
    score, flat = table.mean(dim=0).tolist()
    return {"luminance_l1": score, "flat_luminance_l1": flat, "images": float(len(table))}


def reconstruction_text(scores: Mapping[str, float]) -> str:
    """Return the scores in a line of 80 columns."""
    return (
        f"held out: L1 of L {scores['luminance_l1']:.3f} (flat {scores['flat_luminance_l1']:.3f}) "
        f"on {scores['images']:.0f} images; luminance alone"
    )
