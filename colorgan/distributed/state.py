"""Pieces of tensors: how weights and optimizer states spread over ranks are named, saved and read.

A piece is a slice of a tensor's elements in row-major order, whatever the tensor's memory format. A
strategy returns what its rank holds (`Strategy.state`), a checkpoint stores it and returns any
slice of any tensor (`Saved`), whichever strategy wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A slice of a tensor that this rank holds."""

    values: Tensor  # flat
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # of the first element, in row-major order


Roles = Mapping[str, Mapping[str, Tensor | Piece]]


class Saved(Protocol):
    """Named tensors by role, readable in slices (`colorgan.checkpoints.checkpoint.Checkpoint`)."""

    def shapes(self, role: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor of a role."""
        ...

    def read(self, role: str, name: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Return a flat slice of a tensor (to its end without `length`), on the CPU."""
        ...


def rank_slice(tensor: Tensor, rank: int, world_size: int) -> Piece:
    """Return the `rank`-th of `world_size` even slices of a whole tensor; it may be empty."""
    count = tensor.numel()
    # Whole-number arithmetic: the slices meet exactly, whatever the tensor's size.
    start = count * rank // world_size
    stop = count * (rank + 1) // world_size
    return Piece(tensor.detach().reshape(-1)[start:stop], tuple(tensor.shape), start)


def read_whole(saved: Saved, role: str) -> dict[str, Tensor]:
    """Return all tensors of a role, whole, on the CPU, with their own dtypes."""
    shapes = saved.shapes(role)
    return {name: saved.read(role, name).view(shape) for name, (_, shape) in shapes.items()}


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Return all tensors of the optimizers' states."""
    states = [slots for optimizer in optimizers for slots in optimizer.state.values()]
    return [value for slots in states for value in slots.values() if isinstance(value, Tensor)]


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as tensors named `<parameter>/<slot>`.

    Adam has the slots step, exp_avg and exp_avg_sq.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}

    tensors = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{names[parameter]}/{slot}"] = value
    return tensors


def load_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Load what `optimizer_state` returned; parameters that had no state keep none."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        # From the right: slots have no slash, names of parameters are not ours alone.
        name, slot = key.rsplit("/", 1)
        slots.setdefault(name, {})[slot] = value

    names = {parameter: name for name, parameter in module.named_parameters()}
    # torch numbers an optimizer's states in this order; by name they survive another grouping.
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: slots[names[p]] for i, p in enumerate(order) if names[p] in slots}
    # This run's own groups: its rates and decays come from its recipe, not from the checkpoint.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _match_memory_format(optimizer)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the strides of its weight.

    Checkpoints are read in row-major order. Adam's fused step walks weight, gradient and moments
    through memory side by side: with other strides it pairs the wrong elements on a CPU, without an
    error, and raises on a GPU.
    """
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
