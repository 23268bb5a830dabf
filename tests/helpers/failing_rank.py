"""A run of which one rank fails: `python failing_rank.py FOLDER RANK ERROR WHERE`, as two ranks.

The process group cannot be left: `destroy_process_group` blocks, as NCCL's shutdown does while
peers wait in a collective call (gloo's returns at once, so that CPU ranks would not show it).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from colorgan.config.command import run_command  # noqa: E402
from colorgan.distributed import strategy  # noqa: E402
from colorgan.distributed.ranks import joined_ranks  # noqa: E402
from colorgan.tasks.pretraining import pretrain  # noqa: E402
from helpers.toy import ToyLoader, toy_recipe  # noqa: E402
from shards.errors import ShardError  # noqa: E402

ERRORS: dict[str, Exception] = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "shard": ShardError("coco-000012.tar: sample 17 cannot be read"),
    "bug": ZeroDivisionError("a fault of the program"),
}


class FailingLoader(ToyLoader):
    """Fails on one rank, in a training step or in a validation."""

    error: Exception
    where: str

    def batch(self, slots: range) -> Any:
        """Return a micro-batch, or fail."""
        if self.where == "step" and 24 <= slots.start < 10_000:
            raise self.error
        return super().batch(slots)

    def eval_batches(self) -> Iterator[Any]:
        """Yield the validation batches, or fail."""
        if self.where == "validation":
            raise self.error
        yield from super().eval_batches()


def main(argv: list[str]) -> int:
    """Train until the rank fails."""
    folder, rank, error, where = argv
    # As NCCL's does; see above.
    dist.destroy_process_group = lambda *_: time.sleep(1000)

    timeout_s = 5 if where == "start" else 60
    with joined_ranks(timeout_s=timeout_s, torch_threads=1) as ranks:
        if where == "start" and ranks.rank == int(rank):
            # As by a signal, without a word to the others, who go on to build their networks:
            # DeepSpeed with a group of its own.
            strategy.DataParallel = dist.new_group = lambda *_, **__: os._exit(9)
        recipe = toy_recipe(Path(folder) / "run", launch={"timeout_s": timeout_s})
        loader = ToyLoader(8, 4, ranks.rank, 2)
        if ranks.rank == int(rank):
            # On one rank only: the others must learn of it.
            loader = FailingLoader(8, 4, ranks.rank, 2)
            loader.error, loader.where = ERRORS[error], where
        pretrain(recipe, ranks, total_images=48, data_digest="x", train=loader, val=loader)

    return 0


if __name__ == "__main__":
    run_command(main, ShardError)
