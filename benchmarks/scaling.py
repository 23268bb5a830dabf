"""Images/s of the training step under each strategy, on one rank and on several of this machine.

    python benchmarks/scaling.py --data PACKED_FOLDER [--ranks 2] [--width 32] [--repeats 3]

Each row starts real ranks (NCCL on GPUs, gloo on a CPU) that train the product's GAN on one
repeated global batch of the same size. "against one" compares with one rank under DDP; "sent" is
the least that a rank must send per step (`colorgan.training.memory.sent_bytes`). On a CPU the ranks
share one machine's cores: two can then hardly be faster than one with all threads.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.doctor.jobs import run_job
from colorgan.tasks.colorization import build_pretraining
from colorgan.training.memory import sent_bytes

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def environment_of(strategy: str) -> dict[str, str]:
    """Return what the launch profile of a strategy sets."""
    if strategy == "ddp":
        return {}
    stage = strategy.removeprefix("zero")
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}


def images_per_s(strategy: str, world_size: int, settings: dict[str, Any], on_cpu: bool) -> float:
    """Start the ranks and return the images/s of all together.

    Raises:
        SystemExit: A rank failed; with its last line.
    """
    job = run_job(
        "steps",
        settings,
        world_size=world_size,
        on_cpu=on_cpu,
        timeout_s=300,
        environment=environment_of(strategy),
    )
    if job.failed or not job.results:
        raise SystemExit(f"{strategy} on {world_size} ranks: {job.reason}")
    return float(job.results[-1]["images_per_s"])


def weight_bytes(image_size: int, width: int) -> int:
    """Return the bytes of both networks' weights in float32."""
    recipe = PretrainRecipe.model_validate(
        {
            "network": {"image_size": image_size, "width": width},
            "discriminator": {"width": width},
        }
    )
    _, strategy = build_pretraining(recipe, Ranks.single(), 1)
    parameters = [p for phase in strategy.phases.values() for p in phase.module.parameters()]
    return sum(4 * parameter.numel() for parameter in parameters)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="packed folder")
    parser.add_argument("--ranks", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32, help="global batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()

    on_cpu = not torch.cuda.is_available()
    settings = {
        "data": str(given.data),
        "network": {"image_size": given.image_size, "width": given.width},
        "settings": [{"global_batch_size": given.batch}],
        "seconds": given.seconds,
    }
    # One rank first: all others are compared with it.
    rows = [("ddp", 1), *((strategy, given.ranks) for strategy in STRATEGIES)]
    # All rows in turn, several times: medians then compare like with like.
    rates: dict[tuple[str, int], list[float]] = {row: [] for row in rows}
    for _ in range(given.repeats):
        for strategy, ranks in rows:
            rates[strategy, ranks].append(
                images_per_s(
                    strategy,
                    ranks,
                    settings,
                    on_cpu,
                )
            )

    weights = weight_bytes(given.image_size, given.width)
    alone = statistics.median(rates["ddp", 1])
    print(f"{'':8}{'ranks':>6}{'images/s':>10}{'against one':>13}{'sent, MB per step':>19}")
    for strategy, ranks in rows:
        rate = statistics.median(rates[strategy, ranks])
        sent = sent_bytes(strategy, weights, ranks, 1) / 1e6
        print(f"{strategy:8}{ranks:6}{rate:10.1f}{rate / alone:12.2f}x{sent:19.1f}")


if __name__ == "__main__":
    main()
