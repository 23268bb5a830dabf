"""Pieces of tensors: how weights and optimizer states that lie on several ranks are named, saved and read back.

A piece is a run of a tensor's elements in row-major order. A strategy hands out what its rank holds
(`Strategy.state`), a checkpoint stores it and gives back any run of any tensor (`Saved`), whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A run of a tensor that this rank holds."""

    values: Tensor  # flat
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # of the first element, in row-major order


Roles = Mapping[str, Mapping[str, Tensor | Piece]]


class Saved(Protocol):
    """Named tensors by role, readable in runs (`colorgan.checkpoints.checkpoint.Checkpoint`)."""

    def shapes(self, role: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor of a role."""
        ...

    def read(self, role: str, name: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Return a flat run of a tensor (to its end without `length`), on the CPU."""
        ...


def rank_slice(tensor: Tensor, rank: int, world_size: int) -> Piece:
    """Return the `rank`-th of `world_size` even cuts of a whole tensor; may be empty."""
    start, stop = (tensor.numel() * (rank + i) // world_size for i in (0, 1))
    return Piece(tensor.detach().reshape(-1)[start:stop], tuple(tensor.shape), start)


def read_whole(saved: Saved, role: str) -> dict[str, Tensor]:
    """Return all tensors of a role, whole, on the CPU, with their own dtypes."""
    return {
        name: saved.read(role, name).view(shape) for name, (_, shape) in saved.shapes(role).items()
    }


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Return all tensors of the optimizers' states."""
    states = [slots for optimizer in optimizers for slots in optimizer.state.values()]
    return [value for slots in states for value in slots.values() if isinstance(value, Tensor)]


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as tensors named `<parameter>/<slot>` (Adam: step, exp_avg, exp_avg_sq)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Take over what `optimizer_state` returned; parameters that had no state keep none."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        slots.setdefault(name, {})[slot] = value
    current = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: slots[names[p]] for i, p in enumerate(order) if names[p] in slots}
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
