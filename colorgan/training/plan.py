"""What a run will do, worked out before it does it: lengths, batches, loader arguments, memory, the dry run's page."""

from __future__ import annotations

from collections.abc import Mapping

from colorgan.config.recipe import RunRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.training.memory import STRATEGIES, held_bytes, sent_bytes


def check_batch(recipe: RunRecipe, ranks: Ranks, num_samples: int) -> int:
    """Return the micro-batch size.

    Raises:
        UsageError: the global batch does not divide into equal micro-batches on the ranks, or is larger than the set.
    """
    total, micro = recipe.batch.global_batch_size, recipe.batch.micro_batch_size
    if num_samples < total:
        raise UsageError(
            f"the training set has {num_samples} images, fewer than one batch.global_batch_size of {total}: "
            "lower it, or pack more pictures"
        )
    unit = (micro or 1) * ranks.world_size
    if total % unit:
        raise UsageError(
            f"batch.global_batch_size {total} does not divide into {ranks.world_size} ranks"
            + (f" x batch.micro_batch_size {micro}" if micro else "")
            + f": make it a multiple of {unit}"
        )
    return micro or total // ranks.world_size


def plan_text(
    *, total_images: int, num_samples: int, num_shards: int, recipe: RunRecipe, ranks: Ranks, micro_batch_size: int,
    memory: Mapping[str, int],
) -> str:  # fmt: skip
    """Return the plan that `--dry_run` prints."""
    batch = recipe.batch.global_batch_size
    saves = (
        -(-total_images // recipe.output.save_every_images)
        if recipe.output.save_every_images
        else 1
    )
    accumulation = batch // (micro_batch_size * ranks.world_size)
    stored = memory["weights"] + memory["optimizer"]
    lines = [
        f"images      {total_images:,} = {total_images / num_samples:.2f} passes over {num_samples:,}"
        f" in {num_shards} shards",
        f"steps       {total_images // batch:,} of {batch} images: {ranks.world_size} ranks x "
        f"{accumulation} micro-batches x {micro_batch_size}",
        f"read        every rank reads its share of every batch, {num_shards} shards in a moving window",
        "memory      "
        + ", ".join(f"{k} {_mib(v)}" for k, v in memory.items())
        + " (estimated, float32)",
        *_strategy_lines(memory, ranks.world_size, accumulation),
        f"checkpoints {saves} of {_mib(stored)} (and the weight average, where there is one), "
        f"the last {recipe.output.keep_last} kept: {_mib(min(saves, recipe.output.keep_last) * stored)} on the disk",
        f"device      {ranks.device}, {recipe.batch.precision}",
    ]
    return "\n".join(lines)


def _strategy_lines(
    memory: Mapping[str, int], world_size: int, num_micro_batches: int
) -> list[str]:
    lines = []
    for strategy in STRATEGIES:
        sent = sent_bytes(strategy, memory["weights"], world_size, num_micro_batches)
        held = held_bytes(strategy, memory, world_size)
        lines.append(f"  {strategy:9} {_mib(held)} a rank, sends {_mib(sent)} a rank and step")
    return lines


def _mib(num_bytes: int) -> str:
    return (
        f"{num_bytes / 2**20:,.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.0f} KiB"
    )
