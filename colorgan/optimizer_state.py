"""An optimizer's state as tensors named `<parameter>/<slot>` (Adam: step, exp_avg, exp_avg_sq), as checkpoints hold it.

For optimizers that hold whole parameters; `colorgan/distributed/zero.py` reads and fills those that hold parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


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


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
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
