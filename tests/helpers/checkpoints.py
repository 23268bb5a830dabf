"""Checkpoints written at once, and by several ranks in one process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Roles

T = TypeVar("T")


def save_checkpoint(
    folder: Path,
    *,
    ranks: Ranks,
    roles: Roles,
    state: Mapping[str, Any],
    keep_last: int,
    keep_every_images: int = 0,
) -> Path:
    """Write one checkpoint, wait for it, and return its folder."""
    # In the foreground: its errors are then raised here, and the files are whole.
    writer = CheckpointWriter(
        folder, ranks, keep_last=keep_last, keep_every_images=keep_every_images, background=False
    )
    try:
        return writer.start(roles, state)[-1]
    finally:
        writer.close()


@dataclass
class Meeting:
    """Where the threads of `on_threads` exchange values."""

    barrier: threading.Barrier
    values: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """A rank that is a thread of this process."""

    meeting: Any = None

    def gather(self, value: T) -> list[T]:
        """Return every thread's value, in rank order."""
        self.meeting.values[self.rank] = value
        # Twice: all have written before one reads, and all have read before one writes again.
        self.meeting.barrier.wait(60)
        values = [self.meeting.values[rank] for rank in range(self.world_size)]
        self.meeting.barrier.wait(60)
        return values


def thread_ranks(world_size: int) -> list[ThreadRanks]:
    """Return the ranks of threads that meet each other."""
    meeting = Meeting(threading.Barrier(world_size))
    device = torch.device("cpu")
    # Threads, not processes: a fault can be put into one rank by a plain patch.
    return [ThreadRanks(rank, world_size, device, meeting=meeting) for rank in range(world_size)]
