"""Ranks and the strategy that trains networks over them; the only file that knows how gradients are shared.

A launcher (`accelerate launch`, torchrun, SLURM) starts one process a rank and sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT; `open_ranks` joins them. `open_strategy` gives what the launch profile asks for:
`DataParallel` here (one process or DDP), or `Zero` in `colorgan/distributed/zero.py` (DeepSpeed). What `Strategy` offers (turns,
backward, step, named state) is all that the rest of the code uses.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colorgan.distributed.launch_profile import DATA_PARALLEL, LaunchProfile, check_launch, launch_profile, wants_cpu
from colorgan.distributed.state import Roles, Saved, read_whole
from colorgan.errors import LaunchError
from colorgan.optimizer_state import load_optimizer_state, optimizer_state, optimizer_tensors

T = TypeVar("T")
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    control: Any = None  # gloo group for small CPU tensors and objects, also beside NCCL; None with one rank
    profile: LaunchProfile = DATA_PARALLEL

    @staticmethod
    def single() -> Ranks:
        """Return the ranks of a verb that runs in one process on the CPU."""
        return Ranks(0, 0, 1, torch.device("cpu"))

    @property
    def main(self) -> bool:
        """True on rank 0, which alone logs and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank. Called on all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, in rank order, on all ranks. Called on all ranks; values are small."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank; when it raises on one, every rank raises, so that none waits for it.

        Raises:
            LaunchError: it raised on another rank only; names the rank and its sentence.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        problems = self.gather(f"{type(error).__name__}: {error}" if error else "")
        if error is not None:
            raise error
        for rank, problem in enumerate(problems):
            if problem:
                raise LaunchError(f"rank {rank} could not go on: {problem}")
        return result  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds on any rank. Called on all ranks."""
        if self.control is None:
            return flag
        total = torch.tensor([int(flag)])
        dist.all_reduce(total, group=self.control)
        return bool(total.item())


def open_ranks(*, timeout_s: int, torch_threads: int = 0) -> Ranks:
    """Join the process group that the launcher prepared. Called once, on all ranks.

    Args:
        timeout_s: seconds after which a collective call without an answer ends the run.
        torch_threads: compute threads of this rank; 0 shares the machine's cores among its ranks.

    Raises:
        LaunchError: the launcher started another number of processes than it was asked for, or its profile does not
            fit this machine.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    check_launch()
    profile = launch_profile()
    torch.set_num_threads(torch_threads or cores_a_rank(local_size))
    device = _device(local_rank)
    if world_size == 1:
        return Ranks(0, 0, 1, device, profile=profile)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
    if dist.get_world_size() != world_size:
        raise LaunchError(f"the launcher announced {world_size} ranks, {dist.get_world_size()} came: start again")
    control = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else dist.group.WORLD
    return Ranks(rank, local_rank, world_size, device, control, profile)


def close_ranks() -> None:
    """Leave the process group. Called on all ranks, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def cores_a_rank(local_world_size: int | None = None) -> int:
    """Return how many of this machine's cores one rank may use, at least 1."""
    size = local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, len(os.sched_getaffinity(0)) // size)


def num_nodes(world_size: int) -> int:
    """Return how many machines the ranks run on, if each has as many as this one."""
    return max(1, world_size // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _device(local_rank: int) -> torch.device:
    if wants_cpu() or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; "
            "start as many processes as there are GPUs (--num_processes)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


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
        raise LaunchError(f"batch.compile does not go with {ranks.profile.name}: leave it off, or use ddp.yaml")
    from colorgan.distributed.zero import Zero  # DeepSpeed takes seconds to import

    return Zero(
        ranks,
        phases,
        precision=precision,
        gradient_clip_norm=gradient_clip_norm,
        averaged=averaged,
        average_half_life_images=average_half_life_images,
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
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=precision == "bf16")
        self._clip = gradient_clip_norm
        self._half_life = average_half_life_images
        self.bare: dict[str, nn.Module] = {}
        self._wrapped: dict[str, Network] = {}
        for phase in phases:
            if channels_last:
                phase.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.bare[phase.name] = phase.module
            self._wrapped[phase.name] = self._wrap(torch.compile(phase.module) if compile else phase.module)
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
        return {name: self._wrapped[name] if name == phase.name else self.bare[name] for name in self.bare}

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
            _move_average(self.average, self.bare[self.averaged_name], 0.5 ** (num_images / self._half_life))

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
                load_optimizer_state(phase.module, phase.optimizer, read_whole(saved, f"{name}_optimizer"))
        if self.average is not None:
            self.average.load_state_dict(read_whole(saved, f"{self.averaged_name}_average"))


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
def _move_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module; buffers are copied."""
    ours: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(ours, [p.detach() for p in module.parameters()], 1.0 - decay)
    for mine, other in zip(average.buffers(), module.buffers(), strict=True):
        mine.copy_(other)


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
