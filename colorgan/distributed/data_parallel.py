"""One process or DDP."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from colorgan.distributed.phase import (
    RATE_SHARE,
    Network,
    Phase,
    StrategySettings,
    average_statistics,
    frozen,
)
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import (
    Saved,
    load_optimizer_state,
    optimizer_state,
    optimizer_tensors,
    read_whole,
)

PLAIN = StrategySettings()


class DataParallel:
    """Trains the phases' networks in one process or, with several ranks, under DDP.

    Every rank holds all weights. Running statistics of batch norm are averaged over the ranks after
    every step, so that a checkpoint is the same whichever rank writes it. Built on all ranks, in
    the same order.
    """

    def __init__(
        self, ranks: Ranks, phases: Sequence[Phase], settings: StrategySettings = PLAIN
    ) -> None:
        self.ranks = ranks
        self.phases = {phase.name: phase for phase in phases}
        self._settings = settings
        # Autocast over float32 weights: Adam's small updates would vanish in bf16 weights.
        self._autocast = torch.autocast(
            ranks.device.type, torch.bfloat16, enabled=settings.precision == "bf16"
        )

        self.bare: dict[str, nn.Module] = {}
        # The same networks as they are run: compiled where that is asked for.
        self._run: dict[str, Network] = {}
        # Under DDP. Both kinds share one set of parameters with `bare`.
        self._wrapped: dict[str, Network] = {}
        for phase in phases:
            # Before wrapping: DDP's gradient buckets are views with the strides that weights have
            # then.
            if settings.channels_last:
                phase.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.bare[phase.name] = phase.module
            # Not "reduce-overhead": the outputs of its CUDA graphs are overwritten by the next run,
            # while a generator's output waits for the discriminator's turn.
            runnable = torch.compile(phase.module) if settings.compile else phase.module
            self._run[phase.name] = runnable
            self._wrapped[phase.name] = self._wrap(runnable)

        self.ema_name = settings.ema_name
        self.ema: nn.Module | None = None
        if self.ema_name is not None:
            # Whole on every rank, as all ranks evaluate; it costs the weights' memory once more.
            self.ema = copy.deepcopy(self.bare[self.ema_name]).requires_grad_(False).eval()

    def _wrap(self, module: Any) -> Network:
        # DDP with one rank would only copy gradients into buckets and back.
        if self.ranks.world_size == 1:
            return module  # type: ignore[no-any-return]

        device_ids = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
        wrapped = DistributedDataParallel(
            module,
            device_ids=device_ids,
            # `average_statistics` does it once a step, as a mean; DDP would broadcast rank 0's each
            # time.
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self._settings.gradient_bucket_mb,
        )
        if self._settings.compress_gradients:
            wrapped.register_comm_hook(None, _bf16_mean)
        return wrapped

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own collects gradients, the others do not."""
        return {**self._run, phase.name: self._wrapped[phase.name]}

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: no gradient reaches the others."""
        return frozen(module for name, module in self.bare.items() if name != phase.name)

    @contextmanager
    def micro_step(self, phase: Phase, *, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch. Called on all ranks.

        Gradients are summed over the ranks in the backward pass of the `last` one only.
        """
        wrapped = self._wrapped[phase.name]
        # Gradients that are still added to need not travel: one all-reduce a step does.
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
        """Clip, update weights, clear gradients; return the gradient norm before clipping.

        Called on all ranks.
        """
        parameters = [p for p in phase.module.parameters() if p.grad is not None]
        # Apart from clipping, as the norm is logged also where nothing is clipped.
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._settings.gradient_clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._settings.gradient_clip_norm, norm)

        for group in phase.optimizer.param_groups:
            group["lr"] = group.get(RATE_SHARE, 1.0) * phase.learning_rate(images_seen)
        phase.optimizer.step()
        # None, not zeros: it frees memory, and a parameter without a gradient is then skipped.
        phase.optimizer.zero_grad(set_to_none=True)
        return norm

    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the EMA. Called on all ranks."""
        average_statistics(self.bare.values(), self.ranks)
        if self.ema is not None and self.ema_name is not None:
            _move_ema(self.ema, self.bare[self.ema_name], self._settings.ema_decay(num_images))

    def evaluated(self, name: str, *, ema: bool | None = None) -> nn.Module:
        """Return the module that evaluation and pictures use: the EMA if there is one."""
        if self.ema is not None and name == self.ema_name and ema is not False:
            return self.ema
        return self.bare[name]

    def release(self, name: str) -> nn.Module:
        """Return the network itself."""
        return self.bare[name]

    def held(self) -> dict[str, list[Tensor]]:
        """Return the weights, gradients and optimizer states on this rank now; for accounting."""
        weights = [parameter for module in self.bare.values() for parameter in module.parameters()]
        gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
        return {
            "weights": [*weights],
            "gradients": gradients,
            "optimizer": optimizer_tensors(phase.optimizer for phase in self.phases.values()),
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return all weights and optimizer states as whole named tensors, by role.

        They are the same on every rank.
        """
        roles: dict[str, dict[str, Tensor]] = {}
        for name, phase in self.phases.items():
            roles[name] = dict(self.bare[name].state_dict())
            roles[f"{name}_optimizer"] = optimizer_state(phase.module, phase.optimizer)
        if self.ema is not None:
            roles[f"{self.ema_name}_average"] = dict(self.ema.state_dict())
        return roles

    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Load what any strategy, on any number of ranks, has saved. Called on all ranks."""
        for name, phase in self.phases.items():
            self.bare[name].load_state_dict(read_whole(saved, name))
            if with_optimizers:
                tensors = read_whole(saved, f"{name}_optimizer")
                load_optimizer_state(phase.module, phase.optimizer, tensors)

        if self.ema is not None:
            self.ema.load_state_dict(read_whole(saved, f"{self.ema_name}_average"))


def _bf16_mean(state, bucket):  # type: ignore[no-untyped-def]  # torch checks annotations of hooks
    """Average a bucket of gradients as bfloat16.

    torch refuses its own hook by name on gloo, although gloo sends bfloat16.
    """
    return bf16_compress_hook(state, bucket)


@torch.no_grad()
def _move_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """Set the EMA to decay * ema + (1 - decay) * module; buffers are copied."""
    ours: list[Tensor] = list(ema.parameters())
    torch._foreach_lerp_(ours, [p.detach() for p in module.parameters()], 1.0 - decay)

    buffers: list[Tensor] = list(ema.buffers())
    if buffers:
        # Statistics are averages over images already; averaged once more they would lag behind.
        torch._foreach_copy_(buffers, list(module.buffers()))
