"""Settings that depend on the device: what `auto`, or nothing, means on this one.

The values chosen are written into the run's recipe, so that a run keeps them wherever it is
resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from colorgan.config.recipe import RunRecipe
from colorgan.distributed.phase import StrategySettings
from colorgan.distributed.ranks import Ranks, has_bf16
from colorgan.errors import LaunchError

Recipe = TypeVar("Recipe", bound=RunRecipe)


def chosen_for_device(recipe: Recipe, ranks: Ranks, earlier: Mapping[str, Any]) -> Recipe:
    """Return the recipe with precision and memory format chosen.

    Called on all ranks, which choose alike.

    Args:
        recipe: Its `batch.precision` and `batch.channels_last` may be "auto" or unset. Unset means
            "auto" on a GPU, and fp32 in the usual format on a CPU.
        ranks: This process among the ranks.
        earlier: The recipe of the run that is resumed, whose choice is kept; {} for a new run.

    Raises:
        LaunchError: bf16 is asked for on a GPU that only emulates it.
    """
    batch = recipe.batch
    kept = earlier.get("batch")
    kept = kept if isinstance(kept, Mapping) else {}
    # Asked of every rank: with different cards, ranks in different precisions would drift apart.
    can_do_bf16 = all(ranks.gather(has_bf16(ranks.device)))

    precision: Any = batch.precision
    if precision in (None, "auto"):
        wanted = precision == "auto" or ranks.device.type == "cuda"
        precision = "bf16" if wanted and can_do_bf16 else "fp32"
        # A run that moves to another card keeps its arithmetic: its checkpoints were made with it.
        if kept.get("precision") in ("fp32", "bf16"):
            precision = kept["precision"]
    elif precision == "bf16" and ranks.device.type == "cuda" and not has_bf16(ranks.device):
        raise LaunchError(
            f"batch.precision is bf16, which {torch.cuda.get_device_name(ranks.device)} only "
            "emulates, slowly: use --batch.precision fp32"
        )

    channels_last: Any = batch.channels_last
    if channels_last in (None, "auto"):
        wanted = channels_last == "auto" or ranks.device.type == "cuda"
        # It goes with bf16, whose tensor-core kernels want NHWC.
        channels_last = wanted and precision == "bf16"
        if isinstance(kept.get("channels_last"), bool):
            channels_last = kept["channels_last"]
        # DeepSpeed's flat buffers are in row-major order; the format does not change what is saved.
        channels_last = channels_last and not ranks.profile.zero_stage

    update = {"precision": precision, "channels_last": channels_last}
    return recipe.model_copy(update={"batch": batch.model_copy(update=update)})


def strategy_settings(
    recipe: RunRecipe,
    *,
    gradient_clip_norm: float,
    ema: str | None = None,
    ema_half_life_images: int = 0,
) -> StrategySettings:
    """Translate a recipe, with precision and memory format chosen, for a strategy."""
    batch = recipe.batch
    return StrategySettings(
        precision="bf16" if batch.precision == "bf16" else "fp32",
        gradient_clip_norm=gradient_clip_norm,
        channels_last=batch.channels_last is True,
        compile=batch.compile,
        compress_gradients=batch.compress_gradients,
        gradient_bucket_mb=recipe.launch.gradient_bucket_mb,
        ema=ema,
        ema_half_life_images=ema_half_life_images,
    )


def speed_hint(recipe: RunRecipe, ranks: Ranks) -> str | None:
    """Return a sentence where a GPU runs in float32 that would be far faster in bf16."""
    if ranks.device.type != "cuda" or recipe.batch.precision != "fp32":
        return None
    if not has_bf16(ranks.device):
        return None
    return (
        "fp32 uses a GPU's tensor cores for convolutions only, as TF32: --batch.precision auto "
        "--batch.channels_last auto is two to three times faster"
    )
