"""Lengths, intervals and learning rates over images seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from colorgan.config.recipe import RunRecipe
from colorgan.training.loop import Intervals

ScheduleName = Literal["constant", "linear", "cosine"]


def learning_rate_schedule(
    peak: float,
    *,
    schedule: ScheduleName,
    total_images: int,
    warmup_images: int = 0,
    decay_start: float = 0.0,
    first_image: int = 0,
) -> Callable[[int], float]:
    """Return the learning rate as a function of images seen.

    It rises linearly from 0 over `warmup_images`, stays at `peak` for the share `decay_start` of
    the images, then decays to 0 at `first_image + total_images` (linear, or half a cosine) or stays
    (constant).
    """

    def rate(images_seen: int) -> float:
        # A later stage starts its own schedule; images seen count through all of them.
        done = images_seen - first_image
        if done < warmup_images:
            return peak * done / warmup_images

        # The bound keeps decay_start 1.0, which means no decay, from dividing by zero.
        decayed = (done / total_images - decay_start) / max(1e-12, 1.0 - decay_start)
        # Clamped: before the decay the rate is the peak, and past the end it is never negative.
        progress = min(1.0, max(0.0, decayed))
        if schedule == "linear":
            return peak * (1.0 - progress)
        if schedule == "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak

    return rate


DEFAULT_EPOCHS = 20.0  # the paper's


def images_to_see(
    images: int | None, epochs: float | None, num_samples: int, global_batch_size: int
) -> int:
    """Return the images a run sees, rounded up to whole steps."""
    wanted = images if images is not None else round((epochs or DEFAULT_EPOCHS) * num_samples)
    # Whole steps, as the last batch is a full one; at least one, so that a run trains at all.
    return max(1, -(-wanted // global_batch_size)) * global_batch_size


def intervals(recipe: RunRecipe, total_images: int) -> Intervals:
    """Translate a recipe's `output` section for the training loop."""
    output = recipe.output
    return Intervals(
        total_images=total_images,
        global_batch_size=recipe.batch.global_batch_size,
        log_every_images=output.log_every_images,
        validate_every_images=output.validate_every_images,
        save_every_images=output.save_every_images,
    )
