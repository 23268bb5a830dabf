"""Ranks and the strategy that trains networks over them; the only file that knows how gradients are shared.

A launcher (`accelerate launch`, torchrun, SLURM) starts one process a rank and sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT; `open_ranks` joins them. `open_strategy` gives what the launch profile asks for:
`DataParallel` here (one process or DDP), or `Zero` in `colorgan/distributed/zero.py` (DeepSpeed). What `Strategy` offers (turns,
backward, step, named state) is all that the rest of the code uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from colorgan.distributed.launch_profile import (
    DATA_PARALLEL,
    LaunchProfile,
    check_launch,
    launch_profile,
    wants_cpu,
)
from colorgan.errors import LaunchError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    control: Any = (
        None  # gloo group for small CPU tensors and objects, also beside NCCL; None with one rank
    )
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

    def on_all_ranks(self, work: Callable[[], T]) -> T:
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


@contextmanager
def joined_ranks(*, timeout_s: int, torch_threads: int = 0) -> Iterator[Ranks]:
    """Join the process group, choose deterministic algorithms, and leave at the end.

    What every command that runs on several ranks begins with. Called once, on all ranks.

    Args:
        timeout_s: Seconds after which a collective call without an answer ends the run.
        torch_threads: Compute threads of this rank; 0 shares the machine's cores among its ranks.

    Raises:
        LaunchError: As in `open_ranks`.
    """
    ranks = open_ranks(timeout_s=timeout_s, torch_threads=torch_threads)
    try:
        set_determinism()
        yield ranks
    finally:
        close_ranks()


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
    local_rank, local_size = (
        int(os.environ.get("LOCAL_RANK", 0)),
        int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
    )
    check_launch()
    profile = launch_profile()
    torch.set_num_threads(torch_threads or cores_a_rank(local_size))
    device = _device(local_rank)
    if world_size == 1:
        return Ranks(0, 0, 1, device, profile=profile)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend, timeout=timeout, device_id=device if device.type == "cuda" else None
    )
    if dist.get_world_size() != world_size:
        raise LaunchError(
            f"the launcher announced {world_size} ranks, {dist.get_world_size()} came: start again"
        )
    control = (
        dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else dist.group.WORLD
    )
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


def set_determinism() -> None:
    """Choose the algorithms that give the same numbers every time; called once, before networks are built."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
