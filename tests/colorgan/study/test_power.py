"""The difference that a study can show, against simulated studies with the assumed spreads."""

from __future__ import annotations

import numpy as np
import pytest

from colorgan.study.bootstrap import over_runs
from colorgan.study.power import detectable_difference
from colorgan.study.settings import AssumedSpreads


@pytest.mark.parametrize(
    ("num_pretraining", "num_seeds"),
    [(3, 3), (1, 5), (5, 3)],
)
def test_a_difference_of_that_size_is_shown_in_most_studies(
    num_pretraining: int, num_seeds: int
) -> None:
    """About 80 %: drawn studies with crossed seeds and images, by the study's own interval."""
    # One pretraining run hides its own spread: the power is that over runs which are resampled.
    spreads = AssumedSpreads(
        pretraining=1.0 if num_pretraining > 1 else 0.0,
        seeds=1.0,
        image=20.0,
    )
    num_images = 400
    points = detectable_difference(spreads, num_images, num_seeds, num_pretraining)
    generator = np.random.default_rng(0)
    shown = 0
    for _ in range(400):
        of_pretraining_P1 = generator.normal(0, spreads.pretraining, (num_pretraining, 1))
        of_seeds_S = generator.normal(0, spreads.seeds, num_seeds)
        of_images = spreads.image / num_images**0.5
        truth = points + generator.normal(0, of_images)
        differences_PS = truth + of_pretraining_P1 + of_seeds_S
        resampled_R = generator.normal(differences_PS.mean(), of_images, 400)
        low = np.quantile(over_runs(differences_PS, resampled_R, generator)[0], 0.025)
        shown += low > 0

    assert 0.70 <= shown / 400 <= 0.92


def test_more_of_everything_shows_smaller_differences() -> None:
    spreads = AssumedSpreads()
    few = detectable_difference(spreads, 170, 3, 1)
    assert detectable_difference(spreads, 830, 3, 1) < few
    assert detectable_difference(spreads, 170, 3, 3) < few
    assert detectable_difference(spreads, 170, 9, 1) < few
