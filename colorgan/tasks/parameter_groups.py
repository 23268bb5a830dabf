"""Which weights learn in fine-tuning, at which share of the rate, with which decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from colorgan.distributed.phase import RATE_SHARE
from colorgan.errors import UsageError
from colorgan.models.unet import Encoder


def freeze(
    model: nn.Module, learned_anew: tuple[str, ...], *, features: bool, levels: int = 0
) -> None:
    """Put a model in training mode; frozen parts keep their weights and statistics.

    Args:
        model: Changed in place.
        learned_anew: How the names of the layers begin that are never frozen.
        features: Freeze all other layers.
        levels: Freeze these many levels of the encoder, from the input on.

    Raises:
        UsageError: The encoder has no more levels than these, or is not the U-Net's own.
    """
    if levels:
        _check_levels(model, levels)
    # The dot behind the number: without it, level 1 would match level 10.
    first_levels = tuple(f"encoder.blocks.{level}." for level in range(levels))

    def is_frozen(name: str) -> bool:
        return name.startswith(first_levels) or (features and not name.startswith(learned_anew))

    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
    for name, part in model.named_modules():
        # Frozen batch norms must use, and keep, the statistics of pretraining.
        if name and is_frozen(f"{name}."):
            # Not `eval()`, which would descend into parts that learn.
            part.training = False
    if features:
        model.training = False


def _check_levels(model: nn.Module, levels: int) -> None:
    if not isinstance(model.encoder, Encoder):
        raise UsageError(
            "frozen_levels and layer_decay need the U-Net's own encoder: leave them out"
        )
    if levels >= len(model.encoder.blocks):
        raise UsageError(
            f"frozen_levels is {levels}, but the encoder has {len(model.encoder.blocks)} levels; "
            "features: frozen freezes them all"
        )


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return an optimizer's groups of the parameters that learn.

    Weight matrices and kernels decay; biases and the parameters of norms do not. The deepest level
    of the encoder learns at `layer_decay` times the rate of the layers behind it, each level before
    it at `layer_decay` times that (Clark et al. 2020, ELECTRA, as used by Bao et al. 2021, BEiT).

    Raises:
        UsageError: `layer_decay` is under 1 and the encoder is not the U-Net's own.
    """
    if layer_decay < 1.0:
        # Depth is read from the U-Net's names; another encoder's levels are cut at other places.
        _check_levels(model, 0)

    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue

        share = layer_decay ** _levels_to_the_end(model, name) if layer_decay < 1.0 else 1.0
        # Biases and norms are one-dimensional; pulling them to zero shifts outputs without
        # regularising.
        decay = weight_decay if parameter.ndim > 1 else 0.0
        group = {"params": [], "weight_decay": decay, RATE_SHARE: share}
        # Few groups: the fused optimizer launches its kernels once for each.
        groups.setdefault((share, decay), group)["params"].append(parameter)
    return list(groups.values())


def _levels_to_the_end(model: nn.Module, name: str) -> int:
    """Return 1 for the encoder's deepest level, 2 for the one before, 0 for other layers."""
    prefix = "encoder.blocks."
    if not name.startswith(prefix):
        return 0

    level = int(name.removeprefix(prefix).partition(".")[0])
    blocks: nn.ModuleList = model.get_submodule("encoder.blocks")  # type: ignore[assignment]
    return len(blocks) - level
