"""Phase and Strategy: what training asks of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Roles, Saved

Network = Callable[..., Tensor]


@dataclass
class Phase:
    """One turn of a training step: the network it trains, with what, how often, at which rate.

    `learning_rate` maps images seen to the rate; `every` counts steps.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    every: int = 1


class Strategy(Protocol):
    """Trains the phases' networks over the ranks. Everything but `networks`, `turn` and `autocast` is collective."""

    ranks: Ranks
    phases: dict[str, Phase]
    averaged_name: str | None  # of the network whose weights are averaged (EMA)

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own network tracked for gradients, the others bare."""

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: nothing leaks into the others."""

    def micro_step(self, phase: Phase, *, last: bool) -> AbstractContextManager[None]:
        """Surround forward and backward of one micro-batch."""

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision for a forward pass."""

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss to the phase's network."""

    def step(self, phase: Phase, images_seen: int) -> Tensor:
        """Clip, update the phase's weights, clear gradients; return the gradient norm before clipping."""

    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the weight average."""

    def evaluated(self, name: str, *, average: bool | None = None) -> nn.Module:
        """Return a whole network to run, not to train: averaged (None: where there is an average) or raw weights."""

    def state(self) -> Roles:
        """Return what this rank holds of weights and optimizer states, by role and name."""

    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Take over what `state` of any strategy, on any number of ranks, was saved as."""

    def release(self, name: str) -> nn.Module:
        """End this strategy; return a network with its weights, for another one to train."""

    def held(self) -> dict[str, list[Tensor]]:
        """Return what this rank keeps at this moment, as weights, gradients and optimizer; for accounting."""


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, no parameter of `modules` collects a gradient; otherwise accumulation is wrong, without an error."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    tracked = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, tracked, strict=True):
            parameter.requires_grad_(flag)


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Give every rank the mean over the ranks of each floating-point buffer. Called on all ranks."""
    if ranks.world_size == 1:
        return
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= ranks.world_size
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
