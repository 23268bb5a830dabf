"""Front door: one process, DDP or DeepSpeed, as the launch profile asks."""

from __future__ import annotations

from collections.abc import Sequence

from colorgan.distributed.data_parallel import PLAIN, DataParallel
from colorgan.distributed.phase import Phase, Strategy, StrategySettings
from colorgan.distributed.ranks import Ranks
from colorgan.errors import LaunchError

__all__ = ["StrategySettings", "open_strategy"]


def open_strategy(
    ranks: Ranks, phases: Sequence[Phase], settings: StrategySettings = PLAIN
) -> Strategy:
    """Return the strategy of the launch profile.

    Called on all ranks, which pass the same phases in the same order.

    Raises:
        LaunchError: The profile does not support a setting.
    """
    profile = ranks.profile
    if not profile.zero_stage:
        return DataParallel(ranks, phases, settings)

    # DeepSpeed keeps weights and gradients in flat buffers of its own, in row-major order.
    unsupported = {
        "batch.compile": settings.compile,
        "batch.channels_last": settings.channels_last,
        "batch.compress_gradients": settings.compress_gradients,
    }
    for key, asked in unsupported.items():
        if asked:
            raise LaunchError(
                f"{key} is not supported under {profile.name}: leave it off, or use ddp.yaml"
            )

    from colorgan.distributed.zero import Zero  # DeepSpeed takes seconds to import

    return Zero(ranks, phases, settings)
