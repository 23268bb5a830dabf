"""The first words of a training run, printed before torch is imported, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from colorgan.config.recipe import PretrainRecipe, RunRecipe
from colorgan.launchers import wants_cpu

# Of NVIDIA's driver: a folder per GPU.
GPUS = Path("/proc/driver/nvidia/gpus")
# Set by the console for the ranks that it starts: it has printed the lines itself, seconds before.
PRINTED = "COLORGAN_FIRST_LINES_PRINTED"


def print_first_lines(title: str, recipe: RunRecipe, num_ranks: int | None = None) -> None:
    """Print what is about to start and where to look. Rank 0 prints, others do nothing.

    Args:
        title: What the run is: `pretrain`, `finetune`.
        recipe: The run's recipe; a dry run prints its plan alone.
        num_ranks: Given by a launcher, which prints in its ranks' place; None in a rank.
    """
    if recipe.dry_run:
        return
    if num_ranks is None:
        # The ranks have not met yet: their launcher's variables are all there is.
        if os.environ.get("RANK", "0") != "0" or PRINTED in os.environ:
            return
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))

    print(first_lines(title, recipe, num_ranks), flush=True)


def first_lines(title: str, recipe: RunRecipe, num_ranks: int) -> str:
    """Return three lines: device, ranks, threads, batch; data; run folder and where to look."""
    cores = len(os.sched_getaffinity(0))
    gpus = _num_gpus()
    device = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "CPU"

    # The ranks of this node share its cores; those of others have their own.
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks))
    threads = recipe.launch.torch_threads or max(1, cores // num_local)
    names = " ".join(map(str, recipe.data.train)) or "the built-in sample"
    batch = recipe.batch
    micro = batch.micro_batch_size or batch.global_batch_size // num_ranks
    parts = [
        f"{title}: {device}",
        f"{num_ranks} rank{'s' if num_ranks > 1 else ''}",
        f"{threads} thread{'s' if threads > 1 else ''} each",
        f"batch {batch.global_batch_size}",
        f"micro-batch {micro}",
    ]
    return (
        f"{', '.join(parts)}\n"
        f"  data {names}\n"
        f"  {recipe.run}: look at log.jsonl{_pictures(recipe)}; loading torch ..."
    )


def _pictures(recipe: RunRecipe) -> str:
    """Return the words for the folder that validation draws into; it is there with one alone."""
    # Without training data the built-in sample is trained on, which brings its own validation.
    if recipe.data.train and not recipe.data.val:
        return ""
    return " and pictures/" if isinstance(recipe, PretrainRecipe) else " and evaluation/"


def _num_gpus() -> int:
    """Return the machine's GPUs, or those that CUDA_VISIBLE_DEVICES leaves; 0 for a CPU run."""
    if wants_cpu():
        return 0
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
