"""Be a rank of a run over two hosts: FOLDER STRATEGY STEPS TIMEOUT_S CLOCK_S SLOW_AT.

CLOCK_S is added to the clock of the second rank. SLOW_AT is where every rank waits a moment, so
that a fault meets that place: `step`, `validation` or `save`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from colorgan.checkpoints import writer  # noqa: E402
from colorgan.config.command import run_command  # noqa: E402
from colorgan.distributed.launch_profile import LaunchProfile  # noqa: E402
from colorgan.distributed.ranks import joined_ranks  # noqa: E402
from colorgan.tasks.pretraining import pretrain  # noqa: E402
from helpers.toy import ToyLoader, toy_recipe  # noqa: E402

PAUSE_S = 3.0


class PausingLoader(ToyLoader):
    """Waits in one of its places."""

    where = "step"

    def batch(self, slots: range) -> Any:
        """Return a micro-batch."""
        time.sleep(0.05)
        return super().batch(slots)

    def eval_batches(self) -> Iterator[Any]:
        """Yield the validation batches."""
        if self.where == "validation":
            time.sleep(PAUSE_S)
        yield from super().eval_batches()


def main(argv: list[str]) -> int:
    """Train."""
    folder, strategy, steps, timeout_s, clock_s, where = argv
    with joined_ranks(timeout_s=int(timeout_s), torch_threads=1) as ranks:
        if ranks.rank == 1:
            real = time.time
            time.time = lambda: real() + float(clock_s)
        if where == "save":
            real_save = writer.save_tensors
            writer.save_tensors = lambda *a, **k: (time.sleep(0.5), real_save(*a, **k))
        total = 8 * int(steps)
        recipe = toy_recipe(
            Path(folder),
            images=total,
            launch={"timeout_s": int(timeout_s)},
            ema_half_life_images=16,
            output={
                "log_every_images": 8,
                "save_every_images": 32,
                "validate_every_images": 32 if where == "validation" else 0,
                "background_save": where != "save",
                "trackers": [],
            },
        )
        loader = PausingLoader(8, 4, ranks.rank, 2)
        loader.where = where
        stage = int(strategy.removeprefix("zero") or 0) if strategy != "ddp" else 0
        mine = replace(ranks, profile=LaunchProfile(stage))
        pretrain(recipe, mine, total_images=total, data_digest="x", train=loader, val=loader)
    return 0


if __name__ == "__main__":
    run_command(main)
