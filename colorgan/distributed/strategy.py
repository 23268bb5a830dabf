"""Front door: DDP or DeepSpeed, as the launch profile says."""

from __future__ import annotations

from collections.abc import Sequence

from colorgan.distributed.data_parallel import DataParallel
from colorgan.distributed.phase import Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import LaunchError


def open_strategy(
    ranks: Ranks,
    phases: Sequence[Phase],
    *,
    precision: str = "fp32",
    gradient_clip_norm: float = 0.0,
    channels_last: bool = False,
    compile: bool = False,
    averaged: str | None = None,
    average_half_life_images: int = 0,
) -> Strategy:
    """Return the strategy of the launch profile. Called on all ranks, which pass the same phases in the same order.

    Args:
        averaged: name of the phase whose weights are averaged (EMA), if `average_half_life_images` is not 0.

    Raises:
        LaunchError: the profile cannot do what is asked.
    """
    if not ranks.profile.zero_stage:
        return DataParallel(
            ranks,
            phases,
            precision=precision,
            gradient_clip_norm=gradient_clip_norm,
            channels_last=channels_last,
            compile=compile,
            averaged=averaged,
            average_half_life_images=average_half_life_images,
        )
    if compile:
        raise LaunchError(
            f"batch.compile does not go with {ranks.profile.name}: leave it off, or use ddp.yaml"
        )
    from colorgan.distributed.zero import Zero  # DeepSpeed takes seconds to import

    return Zero(
        ranks,
        phases,
        precision=precision,
        gradient_clip_norm=gradient_clip_norm,
        averaged=averaged,
        average_half_life_images=average_half_life_images,
    )
