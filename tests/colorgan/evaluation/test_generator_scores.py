"""Which pictures are shown, and the ratio of colourfulness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.generator_scores import (
    CELLS,
    MAX_PSNR_DB,
    mean_scores,
    save_best_and_worst,
    score_coloring,
    scores_table,
)
from colorgan.evaluation.strips import read_strips


class Fading(nn.Module):
    """Gives every picture the same weak chroma, whatever it is."""

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        return torch.full_like(luminance_B1HW, 0.05).expand(-1, 2, -1, -1)


@dataclass
class Pictures:
    lab_B3HW: Tensor
    sample_ids_B: Tensor
    positions_B: Tensor
    classes_BC = difficult_BC = mask_BHW = stored_masks = None


def batches(chromas: list[float]) -> list[Pictures]:
    """Flat pictures, two a batch, numbered from 100.

    The nearer the chroma is to 0.05, the better they are coloured.
    """
    lab = torch.zeros(len(chromas), 3, 16, 16)
    lab[:, 1:] = torch.tensor(chromas).view(-1, 1, 1, 1)
    ids = torch.arange(100, 100 + len(chromas))
    return [
        Pictures(lab[i : i + 2], ids[i : i + 2], ids[i : i + 2]) for i in range(0, len(chromas), 2)
    ]


@pytest.mark.parametrize(
    "chromas", [[0.3, 0.1, 0.2, 0.06, 0.25], [0.06, 0.1, 0.2, 0.25, 0.3], [0.2, 0.06], [0.1]]
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_worst_and_the_best_are_kept_whatever_the_order(
    chromas: list[float], number: int, tmp_path: Path
) -> None:
    colored = score_coloring(
        Fading(), batches(chromas), ab_scale=128.0, num_pictures=1, num_ranked=number
    )
    order = sorted(range(len(chromas)), key=lambda index: -chromas[index])
    expected = (
        order if len(order) <= 2 * number else [*order[:number], *order[len(order) - number :]]
    )
    assert [shown.sample_id - 100 for shown in colored.ranked] == expected
    assert [shown.sample_id for shown in colored.first] == [100]

    save_best_and_worst(tmp_path, colored, Ranks.single())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == ({"best", "best.png", "worst", "worst.png"} if number else set())
    by_sample = {shown.sample_id: shown for shown in colored.ranked}
    ids = [100 + index for index in order]
    for name, expected_ids in (("worst", ids[:number]), ("best", ids[::-1][:number])):
        strips = read_strips(tmp_path / name)
        assert [strip.sample_id for strip in strips] == expected_ids
        for strip in strips:
            shown = by_sample[strip.sample_id]
            assert strip.scores["psnr"] == pytest.approx(shown.psnr, abs=1e-3)
            assert list(strip.cells) == list(CELLS)
            for cell, pixels in zip(strip.cells.values(), shown.cells, strict=True):
                assert np.array_equal(np.asarray(cell), pixels.permute(1, 2, 0))


def test_colorfulness_is_a_ratio_of_means_and_of_grey_originals_none() -> None:
    few_colors = mean_scores(
        score_coloring(Fading(), batches([0.1, 0.0, 0.0]), ab_scale=128.0), Ranks.single()
    )
    assert few_colors["colourfulness_ratio"] == pytest.approx(
        few_colors["colourfulness"] / few_colors["original_colourfulness"]
    )
    assert few_colors["colourfulness_ratio"] < 3.0  # a mean of ratios would be over 1000
    assert few_colors["grey_psnr"] < MAX_PSNR_DB and few_colors["images"] == 3
    grey = mean_scores(
        score_coloring(Fading(), batches([0.0, 0.0]), ab_scale=128.0), Ranks.single()
    )
    assert math.isnan(grey["colourfulness_ratio"]) and grey["grey_ciede2000"] == pytest.approx(
        0.0, abs=1e-6
    )
    assert grey["grey_psnr"] == MAX_PSNR_DB and "ratio of the means undefined" in scores_table(grey)


def test_chroma_error_by_hand() -> None:
    scores = mean_scores(score_coloring(Fading(), batches([0.1]), ab_scale=100.0), Ranks.single())
    assert scores["chroma_error"] == pytest.approx(math.hypot(5.0, 5.0), rel=1e-3)
    assert scores["grey_chroma_error"] == pytest.approx(math.hypot(10.0, 10.0), rel=1e-2)
    assert scores["chroma_l1"] == pytest.approx(5.0, rel=1e-5)
