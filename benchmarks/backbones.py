"""Size, work, memory and pace of the pretraining step by backbone: the table of docs/backbones.md.

    python benchmarks/backbones.py [--encoders unet,resnet18] [--batch 4] [--seconds 6]

Networks as by default (width 64, a GAN), at 224 pixels, the U-Net at 256; float32, one repeated
batch, one step before the clock. Work and memory are the plan's own (`--dry_run true`), so that the
row says how good the plan is. CPU time is that of all threads; other work on the machine moves it
less than the rate. The load average stands beside each row.
"""

from __future__ import annotations

import argparse
import os

# Imported before torch, which it gives OpenMP's settings.
import colorgan  # noqa: F401

# isort: split
import torch
from step import pace_of, step_of

from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.ranks import Ranks, joined_ranks
from colorgan.runs.provenance import device_name
from colorgan.tasks.colorization import build_pretraining
from colorgan.training.memory import memory_bytes
from colorgan.training.work import step_flops

ENCODERS = (
    "unet",
    "alexnet",
    "resnet18",
    "resnet50",
    "resnet152",
    "vgg16_bn",
    "convnext_tiny",
    "efficientnet_b0",
)
SIZE, UNET_SIZE = 224, 256  # the U-Net halves down to one pixel


def row(encoder: str, ranks: Ranks, batch: int, seconds: float) -> str:
    """Return a backbone's row of the table."""
    size = UNET_SIZE if encoder == "unet" else SIZE
    recipe = PretrainRecipe.model_validate(
        {
            "network": {"encoder": encoder, "image_size": size},
            "batch": {"global_batch_size": batch, "precision": "fp32", "channels_last": False},
        }
    )
    task, strategy = build_pretraining(recipe, ranks, 1_000_000 * batch)
    networks = {name: phase.module for name, phase in strategy.phases.items()}
    parameters = sum(p.numel() for p in networks["generator"].parameters()) / 1e6
    gflop = step_flops(networks, size, batch) / 1e9
    planned = sum(memory_bytes(networks, size, batch).values()) / 2**30

    lab_B3HW = torch.rand(batch, 3, size, size, device=ranks.device) * 2 - 1
    step = step_of(task, strategy, lab_B3HW)
    step()
    pace = pace_of(step, ranks.device, batch, seconds)
    reached = gflop * pace.images_per_s
    return (
        f"| {encoder} | {size} | {parameters:.1f} | {gflop:.0f} | {planned:.2f} | "
        f"{pace.images_per_s:.2f} | {pace.cpu_s:.2f} | {reached:.0f} | {os.getloadavg()[0]:.1f} |"
    )


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of measuring, two steps at least"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as the product chooses")
    given = parser.parse_args()

    with joined_ranks(timeout_s=60, tf32=True, torch_threads=given.threads) as ranks:
        print(
            f"{device_name(ranks.device)}, {torch.get_num_threads()} threads, batch {given.batch}"
        )
        print("| encoder | px | M parameters | GFLOP/image | planned GiB | ", end="")
        print("images/s | CPU s/image | GFLOP/s | load |")
        for encoder in given.encoders.split(","):
            print(row(encoder, ranks, given.batch, given.seconds), flush=True)


if __name__ == "__main__":
    main()
