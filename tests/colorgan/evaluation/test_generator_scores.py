"""Which pictures are shown, and the ratio of colourfulness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from colorgan.color import rgb_to_lab_B3HW
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.generator_scores import (
    CELLS,
    COLUMNS,
    MAX_PSNR_DB,
    WITHOUT_NEAR_GREY,
    mean_scores,
    save_best_and_worst,
    score_coloring,
    scores_table,
)
from colorgan.evaluation.strips import read_strips
from shards.images.chroma import GREY_CHROMA, mean_chroma


class Fading(nn.Module):
    """Gives every picture the same weak chroma, whatever it is."""

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        return torch.full_like(luminance_B1HW, 0.05).expand(
            -1,
            2,
            -1,
            -1,
        )


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
    "chromas",
    [
        [0.3, 0.1, 0.2, 0.06, 0.25],
        [0.06, 0.1, 0.2, 0.25, 0.3],
        [0.2, 0.06],
        [0.1],
    ],
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_worst_and_the_best_are_kept_whatever_the_order(
    chromas: list[float], number: int, tmp_path: Path
) -> None:
    colored = score_coloring(
        Fading(), batches(chromas), ab_scale=128.0, num_pictures=1, num_ranked=number
    )
    order = sorted(
        range(len(chromas)),
        key=lambda index: -chromas[index],
    )
    expected = (
        order if len(order) <= 2 * number else [*order[:number], *order[len(order) - number :]]
    )
    assert [shown.sample_id - 100 for shown in colored.ranked] == expected
    assert [shown.sample_id for shown in colored.first] == [100]

    save_best_and_worst(
        tmp_path,
        colored,
        Ranks.single(),
    )
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
                assert np.array_equal(
                    np.asarray(cell),
                    pixels.permute(1, 2, 0),
                )


def test_colorfulness_is_a_ratio_of_means_and_of_grey_originals_none() -> None:
    few_colors = mean_scores(
        score_coloring(
            Fading(),
            batches([0.1, 0.0, 0.0]),
            ab_scale=128.0,
        ),
        Ranks.single(),
    )

    assert few_colors["colourfulness_ratio"] == pytest.approx(
        few_colors["colourfulness"] / few_colors["original_colourfulness"]
    )
    assert few_colors["colourfulness_ratio"] < 3.0  # a mean of ratios would be over 1000
    assert few_colors["grey_psnr"] < MAX_PSNR_DB
    assert few_colors["images"] == 3

    grey = mean_scores(
        score_coloring(
            Fading(),
            batches([0.0, 0.0]),
            ab_scale=128.0,
        ),
        Ranks.single(),
    )

    assert math.isnan(grey["colourfulness_ratio"])
    assert grey["grey_ciede2000"] == pytest.approx(0.0, abs=1e-6)
    assert grey["grey_psnr"] == MAX_PSNR_DB
    assert "ratio of the means undefined" in scores_table(grey)


def test_chroma_error_by_hand() -> None:
    scores = mean_scores(
        score_coloring(
            Fading(),
            batches([0.1]),
            ab_scale=100.0,
        ),
        Ranks.single(),
    )

    assert scores["chroma_error"] == pytest.approx(
        math.hypot(5.0, 5.0),
        rel=1e-3,
    )
    assert scores["grey_chroma_error"] == pytest.approx(
        math.hypot(10.0, 10.0),
        rel=1e-2,
    )
    assert scores["chroma_l1"] == pytest.approx(5.0, rel=1e-5)


def test_near_grey_originals_are_counted_and_left_out_of_the_second_means() -> None:
    """The means without near-grey ones are those of a set that never had them."""
    colors = [0.3, 0.1, 0.2]
    mixed = [0.0, 0.3, 0.1, 0.005, 0.2]
    alone, together = (
        mean_scores(score_coloring(Fading(), batches(chromas), ab_scale=128.0), Ranks.single())
        for chromas in (colors, mixed)
    )
    assert alone["near_grey_images"] == 0
    assert together["near_grey_images"] == 2
    for name in (*COLUMNS, "colourfulness_ratio"):
        assert alone[name] == pytest.approx(alone[name + WITHOUT_NEAR_GREY])
        assert together[name + WITHOUT_NEAR_GREY] == pytest.approx(alone[name])
    assert together["grey_psnr"] > alone["grey_psnr"]

    lines = scores_table(together).splitlines()
    assert all(len(line) <= 80 for line in lines)
    _, start, rest = " ".join(line.strip() for line in lines).partition("near-grey ")
    near_grey = start + rest
    assert near_grey.startswith("near-grey (mean chroma under 1.5): 2 of 5; without them PSNR ")
    assert near_grey.count("(grey ") == 4
    assert scores_table(alone).endswith("near-grey (mean chroma under 1.5): 0 of 3")


def test_chroma_noise_of_single_pixels_is_no_color() -> None:
    """A near-grey photo is the same one here and in packing."""
    noise_3HW = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.4
    tint_3HW = noise_3HW + torch.tensor([0.03, 0.0, 0.0]).view(3, 1, 1)
    lab_B3HW = rgb_to_lab_B3HW(torch.stack([noise_3HW, tint_3HW]))
    lab_B3HW = torch.cat(
        [
            lab_B3HW[:, :1] / 50 - 1,
            lab_B3HW[:, 1:] / 110,
        ],
        dim=1,
    )
    ids = torch.arange(2)

    batch = Pictures(lab_B3HW, ids, ids)
    scores = mean_scores(
        score_coloring(Fading(), [batch], ab_scale=110.0),
        Ranks.single(),
    )
    assert scores["near_grey_images"] == 1
    for pixels_3HW, is_near_grey in ((noise_3HW, True), (tint_3HW, False)):
        image = Image.fromarray((pixels_3HW * 255).byte().permute(1, 2, 0).numpy())
        assert (mean_chroma(image) < GREY_CHROMA) is is_near_grey
