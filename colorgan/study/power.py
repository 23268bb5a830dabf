"""The difference that a study can show, before it runs, from assumed spreads.

A paired difference has the variance a/P + b/S + c/N with P pretraining seeds, S fine-tuning seeds
and N test images. A true difference of (1.96 + 0.84) standard deviations leaves 0 out of the 95 %
interval in 80 % of studies (Cohen, Statistical Power Analysis, 1988); with few seeds both numbers
are Student's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from colorgan.study.bootstrap import student_quantile
from colorgan.study.protocols import FROZEN, SHOWN_ONLY

if TYPE_CHECKING:
    from colorgan.study.plan import Plan
    from colorgan.study.settings import AssumedSpreads

POWER = 0.8


def detectable_difference(
    spreads: AssumedSpreads, num_images: int, num_seeds: int | None, num_pretraining_seeds: int
) -> float:
    """Return the difference in points that is shown with a chance of 80 %.

    Args:
        num_images: scored.
        num_seeds: of fine-tuning; None: nothing is fine-tuned.
        num_pretraining_seeds: of pretraining.
        spreads: standard deviations in points: over pretraining seeds, over fine-tuning seeds, and
            of one image.
    """
    of_seeds = spreads.seeds**2 / num_seeds if num_seeds else 0.0
    of_pretraining = spreads.pretraining**2 / num_pretraining_seeds
    of_images = spreads.image**2 / num_images
    total = of_seeds + of_pretraining + of_images

    # Few runs widen the interval as in colorgan/study/bootstrap.py; one run is not resampled at
    # all.
    inverse_freedom = 0.0
    for count, variance in ((num_seeds or 1, of_seeds), (num_pretraining_seeds, of_pretraining)):
        if count > 1:
            inverse_freedom += (variance / total) ** 2 / (count - 1)
    limit = student_quantile(inverse_freedom) + student_quantile(inverse_freedom, POWER)
    return limit * math.sqrt(total)


def power_text(plan: Plan) -> str:
    """Return a line per protocol: the smallest difference that the study is likely to show."""
    settings = plan.settings
    num_pretraining = max(1, len(settings.pretrain_seeds))
    lines = [
        f"Differences that this study shows with a chance of {100 * POWER:.0f} %, if the assumed "
        "spreads (assumed_spreads) hold, each by itself:"
    ]
    for trial in plan.trials:
        task = trial.protocol.task
        if task in SHOWN_ONLY:
            continue
        num_images = trial.split.test.num_on_disk(trial.root)
        if num_images is None:
            lines.append(f"  {trial.protocol.name}: the number of test images is not known yet")
            continue
        num_seeds = None if task in FROZEN else len(settings.seeds)
        points = detectable_difference(
            settings.assumed_spreads, num_images, num_seeds, num_pretraining
        )
        seeds = f"{num_seeds} fine-tuning seeds, " if num_seeds else ""
        lines.append(
            f"  {trial.protocol.name}: {points:.1f} points ({num_images:,} test images, {seeds}"
            f"{num_pretraining} pretraining seed{'s' * (num_pretraining > 1)})"
        )
    return "\n".join(lines)
