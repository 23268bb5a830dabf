"""A small GAN, batches drawn from their slots, and rank processes, for the tests of training."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks, close_ranks, open_ranks
from colorgan.tasks.colorization import PretrainTask, build_pretraining
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit

SIZE = 32

# Networks this small are slower with several threads, and far slower where the cores are shared.
torch.set_num_threads(1)


@dataclass
class ToyBatch:
    lab_B3HW: Tensor
    sample_ids_B: Tensor
    positions_B: Tensor
    classes_BC: Tensor | None = None
    difficult_BC: Tensor | None = None
    mask_BHW: Tensor | None = None


def toy_picture(slot: int) -> Tensor:
    """Random luminance, and a chroma that follows from it."""
    # By its slot alone: the same picture on every rank and after every resume.
    luminance = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(slot)) * 1.6 - 0.8
    # Chroma follows from luminance, so that a few steps already lower the loss.
    return torch.cat([luminance, 0.3 + 0.2 * luminance, -0.2 - 0.3 * luminance])


@dataclass
class ToyLoader:
    """Global batches of consecutive slots, cut like the real loader's."""

    global_batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    wait_s: float = 0.0
    replaced: tuple[Any, ...] = ()
    device: str = "cpu"

    def train_batches(self, images_seen: int) -> Iterator[list[Any]]:
        each = self.global_batch_size // self.world_size
        while True:
            # Ranks take neighbouring parts of a global batch, as the real loader does.
            first = images_seen + self.rank * each
            starts = range(first, first + each, self.micro_batch_size)
            yield [self.batch(range(start, start + self.micro_batch_size)) for start in starts]
            images_seen += self.global_batch_size

    def batch(self, slots: range) -> ToyBatch:
        positions_B = torch.tensor(list(slots))
        lab_B3HW = torch.stack([toy_picture(slot) for slot in slots])
        return ToyBatch(lab_B3HW.to(self.device), positions_B, positions_B)

    def eval_batches(self) -> Iterator[Any]:
        # Far from the slots of training, and another one on each rank.
        yield self.batch(range(10_000 + self.rank, 10_002 + self.rank))


def toy_recipe(run: Path, **changes: Any) -> PretrainRecipe:
    """Return a recipe for 32x32 and width 4; `changes` are whole sections as plain data."""
    sections: dict[str, Any] = {
        "run": run,
        "network": {"image_size": SIZE, "width": 4},
        "discriminator": {"width": 4, "num_strided_blocks": 2},
        "batch": {"global_batch_size": 8},
        "output": {"log_every_images": 8, "save_every_images": 16, "validate_every_images": 16},
        "images": 48,
    }

    return PretrainRecipe.model_validate({**sections, **changes})


def train_toy(
    recipe: PretrainRecipe,
    ranks: Ranks,
    *,
    num_steps: int,
    micro_batch_size: int,
    sgd: bool = False,
) -> tuple[PretrainTask, Strategy, list[dict[str, float]]]:
    """Train a few steps and return task, strategy and what was reported."""
    size = recipe.batch.global_batch_size
    task, strategy = build_pretraining(recipe, ranks, num_steps * size)
    for phase in strategy.phases.values() if sgd else ():
        # Adam divides by small numbers: rounding alone would look like a difference.
        phase.optimizer = torch.optim.SGD(phase.module.parameters(), lr=0.01)
    reports: list[dict[str, float]] = []
    hooks = Hooks(
        lambda report: reports.append(report.values), lambda images: None, lambda images: None
    )
    loader = ToyLoader(
        size, micro_batch_size, ranks.rank, ranks.world_size, device=str(ranks.device)
    )
    fit(task, strategy, loader, Intervals(num_steps * size, size, size), hooks, StopSignals())

    return task, strategy, reports


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank_main(
    rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    # A minute: a test that hangs fails before the suite's own limit.
    ranks = open_ranks(timeout_s=60, torch_threads=1)

    try:
        work(ranks, *arguments)
    finally:
        close_ranks()


def on_ranks(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(ranks, *arguments)` in real gloo processes; raise what one of them raises."""
    multiprocessing.set_forkserver_preload(
        ["colorgan.tasks.pretraining", "torch.utils.tensorboard"]
    )  # imported once
    torch.multiprocessing.start_processes(
        _rank_main,
        (world_size, free_port(), work, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )
