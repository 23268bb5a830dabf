"""The first words of a training run, printed before torch is imported, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from colorgan.config.recipe import RunRecipe

# Of NVIDIA's driver: a folder per GPU.
GPUS = Path("/proc/driver/nvidia/gpus")


def print_first_lines(title: str, recipe: RunRecipe) -> None:
    """Print what is about to start and where to look. Rank 0 prints, others do nothing.

    Args:
        title: What the run is: `pretrain`, `finetune`.
        recipe: The run's recipe; a dry run prints its plan alone.
    """
    # The ranks have not met yet: their launcher's variables are all there is.
    if recipe.dry_run or os.environ.get("RANK", "0") != "0":
        return

    print(first_lines(title, recipe, int(os.environ.get("WORLD_SIZE", "1"))), flush=True)


def first_lines(title: str, recipe: RunRecipe, num_ranks: int) -> str:
    """Return two lines: device, ranks, threads, batch and data; run folder and where to look."""
    cores = len(os.sched_getaffinity(0))
    gpus = _num_gpus()
    device = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "CPU"

    threads = recipe.launch.torch_threads or max(1, cores // num_ranks)
    names = " ".join(map(str, recipe.data.train)) or "the built-in sample"
    parts = [
        f"{title}: {device}",
        f"{num_ranks} rank{'s' if num_ranks > 1 else ''}",
        f"{threads} thread{'s' if threads > 1 else ''} each",
        f"batch {recipe.batch.global_batch_size}",
    ]
    return (
        f"{', '.join(parts)}, data {names}\n"
        f"  {recipe.run}: look at log.jsonl and pictures/; loading torch ..."
    )


def _num_gpus() -> int:
    """Return the machine's GPUs, or those that CUDA_VISIBLE_DEVICES leaves."""
    present = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present

    count = 0
    for name in visible.split(","):
        # CUDA takes the list up to the first entry that names no device: -1 hides all after it.
        if not name.strip() or name.strip().startswith("-"):
            break
        count += 1
    return min(present, count)
