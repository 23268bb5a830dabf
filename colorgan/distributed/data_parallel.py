"""One process or DDP."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colorgan.distributed.phase import Network, Phase, average_statistics, frozen
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import (
    Saved,
    load_optimizer_state,
    optimizer_state,
    optimizer_tensors,
    read_whole,
)


class DataParallel:
    """Trains the phases' networks in one process or, with several ranks, under DDP.

    Every rank holds all weights. Running statistics of batch norm are averaged over the ranks after every step,
    so that a checkpoint at any step, of any rank, is the same. Built on all ranks, in the same order.
    """

    def __init__(
        self,
        ranks: Ranks,
        phases: Sequence[Phase],
        *,
        precision: str = "fp32",
        gradient_clip_norm: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
        averaged: str | None = None,
        average_half_life_images: int = 0,
    ) -> None:
        self.ranks = ranks
        self.phases = {phase.name: phase for phase in phases}
        self._autocast = torch.autocast(
            ranks.device.type, torch.bfloat16, enabled=precision == "bf16"
        )
        self._clip = gradient_clip_norm
        self._half_life = average_half_life_images
        self.bare: dict[str, nn.Module] = {}
        self._wrapped: dict[str, Network] = {}
        for phase in phases:
            if channels_last:
                phase.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.bare[phase.name] = phase.module
            self._wrapped[phase.name] = self._wrap(
                torch.compile(phase.module) if compile else phase.module
            )
        self.averaged_name = averaged if average_half_life_images else None
        self.average: nn.Module | None = None
        if self.averaged_name is not None:
            self.average = copy.deepcopy(self.bare[self.averaged_name]).requires_grad_(False).eval()

    def _wrap(self, module: Any) -> Network:
        if self.ranks.world_size == 1:
            return module  # type: ignore[no-any-return]
        device_ids = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own network tracked for gradients, the others bare."""
        return {
            name: self._wrapped[name] if name == phase.name else self.bare[name]
            for name in self.bare
        }

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: nothing leaks into the others."""
        return frozen(module for name, module in self.bare.items() if name != phase.name)

    @contextmanager
    def micro_step(self, phase: Phase, *, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; gradients are shared on the `last`. All ranks."""
        wrapped = self._wrapped[phase.name]
        alone = not last and isinstance(wrapped, DistributedDataParallel)
        with wrapped.no_sync() if alone else nullcontext():  # type: ignore[attr-defined]
            yield

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision for a forward pass."""
        return self._autocast

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss to the phase's network."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, phase: Phase, images_seen: int) -> Tensor:
        """Clip, update the phase's weights, clear gradients; return the gradient norm before clipping. All ranks."""
        parameters = [p for p in phase.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip:
            nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        for group in phase.optimizer.param_groups:
            group["lr"] = phase.learning_rate(images_seen)
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)
        return norm

    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the weight average. Called on all ranks."""
        average_statistics(self.bare.values(), self.ranks)
        if self.average is not None and self.averaged_name is not None:
            _move_average(
                self.average, self.bare[self.averaged_name], 0.5 ** (num_images / self._half_life)
            )

    def evaluated(self, name: str, *, average: bool | None = None) -> nn.Module:
        """Return the module that evaluation and pictures use: the weight average where there is one."""
        if self.average is not None and name == self.averaged_name and average is not False:
            return self.average
        return self.bare[name]

    def release(self, name: str) -> nn.Module:
        """Return the network itself."""
        return self.bare[name]

    def held(self) -> dict[str, list[Tensor]]:
        """Return what this rank keeps at this moment, as weights, gradients and optimizer; for accounting."""
        weights = [parameter for module in self.bare.values() for parameter in module.parameters()]
        gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
        return {
            "weights": [*weights],
            "gradients": gradients,
            "optimizer": optimizer_tensors(phase.optimizer for phase in self.phases.values()),
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return all weights and optimizer states as named whole tensors, by role; the same on every rank."""
        roles: dict[str, dict[str, Tensor]] = {}
        for name, phase in self.phases.items():
            roles[name] = dict(self.bare[name].state_dict())
            roles[f"{name}_optimizer"] = optimizer_state(phase.module, phase.optimizer)
        if self.average is not None:
            roles[f"{self.averaged_name}_average"] = dict(self.average.state_dict())
        return roles

    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Take over what any strategy has saved. Called on all ranks."""
        for name, phase in self.phases.items():
            self.bare[name].load_state_dict(read_whole(saved, name))
            if with_optimizers:
                load_optimizer_state(
                    phase.module, phase.optimizer, read_whole(saved, f"{name}_optimizer")
                )
        if self.average is not None:
            self.average.load_state_dict(read_whole(saved, f"{self.averaged_name}_average"))


@torch.no_grad()
def _move_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Average <- decay * average + (1 - decay) * module; buffers are copied."""
    ours: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(ours, [p.detach() for p in module.parameters()], 1.0 - decay)
    for mine, other in zip(average.buffers(), module.buffers(), strict=True):
        mine.copy_(other)
