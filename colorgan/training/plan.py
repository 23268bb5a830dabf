"""Work out what a run will do before it does it: batches, memory, disk; the dry run's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from colorgan.config.recipe import RunRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.training.memory import STRATEGIES, held_bytes, sent_bytes, weight_bytes

SHARED_MEMORY = Path("/dev/shm")
# gloo and the loader map a few segments; a container's default of 64 MiB is enough for them.
MIN_SHARED_BYTES = 16 << 20
MIN_FREE_FILES = 64


def check_batch(recipe: RunRecipe, ranks: Ranks, num_samples: int) -> int:
    """Return the micro-batch size.

    Raises:
        UsageError: The global batch does not divide into equal micro-batches on the ranks, or is
            larger than the training set.
    """
    total, micro = recipe.batch.global_batch_size, recipe.batch.micro_batch_size
    if num_samples < total:
        raise UsageError(
            f"the training set has {num_samples} images, fewer than one batch.global_batch_size of "
            f"{total}: lower it, or pack more images"
        )

    # Equal shares only: a mean of the ranks' gradients is the global batch's mean then.
    unit = (micro or 1) * ranks.world_size
    if total % unit:
        micro_text = f" x batch.micro_batch_size {micro}" if micro else ""
        raise UsageError(
            f"batch.global_batch_size {total} does not divide into {ranks.world_size} ranks"
            f"{micro_text}: make it a multiple of {unit}"
        )
    return micro or total // ranks.world_size


def start_text(recipe: RunRecipe, ranks: Ranks, device: str) -> str:
    """Return what a run starts with: device, ranks, precision, threads; micro-batch, data.

    Two lines, so that each fits 80 columns.

    Args:
        recipe: The run's recipe, with precision and memory format chosen.
        ranks: This process among the ranks.
        device: Its device by name.
    """
    batch = recipe.batch
    micro = batch.micro_batch_size or batch.global_batch_size // ranks.world_size
    accumulation = max(1, batch.global_batch_size // (micro * ranks.world_size))
    form = " NHWC" if batch.channels_last is True else ""
    parts = [
        device,
        f"{ranks.world_size} {'ranks' if ranks.world_size > 1 else 'rank'} ({ranks.profile.name})",
        f"{batch.precision or 'fp32'}{form}",
        f"{torch.get_num_threads()} threads",
    ]
    return (
        f"{', '.join(parts)}\n"
        f"  {batch.global_batch_size} images per step: {accumulation} x {micro} per rank, "
        f"data {' '.join(map(str, recipe.data.train)) or 'given'}"
    )


def check_machine(
    recipe: RunRecipe,
    ranks: Ranks,
    networks: Iterable[nn.Module],
    averaged: nn.Module | None = None,
) -> None:
    """Refuse a run that the machine of rank 0 has no room for. Called on all ranks.

    Args:
        recipe: The run's recipe; `recipe.run` need not exist yet.
        ranks: This process among the ranks.
        networks: Those that are trained, with their weights.
        averaged: The one whose average is kept, too.

    Raises:
        UsageError: Too little disk space or shared memory, or too few open files; says how much.
    """
    average = weight_bytes(averaged) if averaged is not None else 0
    # Weights, Adam's two moments, and the average.
    work = partial(_check_machine, recipe, 3 * weight_bytes(*networks) + average)
    # Rank 0 writes most and looks; the others get its error instead of waiting for it in vain.
    ranks.on_all_ranks(work if ranks.main else lambda: None)


def _check_machine(recipe: RunRecipe, checkpoint_bytes: int) -> None:
    # While a checkpoint is written, the older ones are still there.
    needed = checkpoint_bytes * (_saved_together(recipe) + 1)
    # The run folder need not exist; its nearest parent tells the disk it will be on.
    existing = next(path for path in (recipe.run, *recipe.run.resolve().parents) if path.exists())
    # A resumed run's own checkpoints make room as they are replaced.
    taken = sum(file.stat().st_size for file in recipe.run.glob("checkpoints/images-*/*"))
    free = shutil.disk_usage(existing).free
    if free + taken < needed:
        raise UsageError(
            f"{existing} has {_mib(free)} free, but the run's checkpoints need {_mib(needed)} "
            f"({_saved_together(recipe)} kept and one being written): free some space, lower "
            "--output.keep_last, or choose another --run"
        )

    # Short shared memory kills a rank with SIGBUS in mid-run, without a word about the cause.
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < MIN_SHARED_BYTES:
        raise UsageError(
            f"{SHARED_MEMORY} has {_mib(shutil.disk_usage(SHARED_MEMORY).free)} free, but ranks "
            f"need {_mib(MIN_SHARED_BYTES)} of shared memory: remove files there, or start the "
            "container with --shm-size=1g"
        )

    limit, used = os.sysconf("SC_OPEN_MAX"), len(list(Path("/proc/self/fd").iterdir()))
    if limit - used < MIN_FREE_FILES:
        raise UsageError(
            f"this process may open {limit} files and has {used} open, but needs {MIN_FREE_FILES} "
            "more: raise the limit with `ulimit -n 4096`"
        )


def _saved_together(recipe: RunRecipe) -> int:
    """Return how many of the newest checkpoints there are at a time, at most."""
    output = recipe.output
    return output.keep_last if output.save_every_images else 1


def plan_text(
    *,
    total_images: int,
    num_samples: int,
    num_shards: int,
    recipe: RunRecipe,
    ranks: Ranks,
    micro_batch_size: int,
    memory: Mapping[str, int],
    work: Sequence[str] = (),
) -> str:
    """Return the plan that `--dry_run` prints; `work` are its lines about work and time."""
    batch, output = recipe.batch.global_batch_size, recipe.output
    num_saves = 1
    if output.save_every_images:
        # Rounded up: the end of a run is saved wherever it falls.
        num_saves = -(-total_images // output.save_every_images)

    accumulation = batch // (micro_batch_size * ranks.world_size)
    saved = memory["weights"] + memory["optimizer"] + memory.get("average", 0)
    on_disk = min(num_saves, output.keep_last) * saved
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in memory.items())
    lines = [
        f"images      {total_images:,} = {total_images / num_samples:.2f} passes over "
        f"{num_samples:,} in {num_shards} shards",
        f"steps       {total_images // batch:,} of {batch} images: {ranks.world_size} ranks x "
        f"{accumulation} micro-batches x {micro_batch_size}",
        f"read        every rank reads its slice of every batch, {num_shards} shards in a moving "
        "window",
        f"memory      {parts} (estimated, float32)",
        *_strategy_lines(memory, ranks.world_size, accumulation),
        *work,
        f"checkpoints {num_saves} of {_mib(saved)}, the last "
        f"{output.keep_last} kept: {_mib(on_disk)} on the disk",
        f"device      {ranks.device}, {recipe.batch.precision or 'fp32'}",
    ]
    return "\n".join(lines)


def _strategy_lines(
    memory: Mapping[str, int], world_size: int, num_micro_batches: int
) -> list[str]:
    lines = []
    for strategy in STRATEGIES:
        sent = sent_bytes(strategy, memory["weights"], world_size, num_micro_batches)
        held = held_bytes(strategy, memory, world_size)
        lines.append(f"  {strategy:9} {_mib(held)} per rank, sends {_mib(sent)} per rank and step")
    return lines


def _mib(num_bytes: int) -> str:
    if num_bytes >= 2**20:
        return f"{num_bytes / 2**20:,.0f} MiB"
    return f"{num_bytes / 2**10:,.0f} KiB"
