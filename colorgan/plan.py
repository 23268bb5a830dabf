"""What a run will do, worked out before it does it: lengths, batches, loader arguments, memory, the dry run's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.distributed import Ranks, cores_a_rank
from colorgan.errors import UsageError
from colorgan.recipe import RunRecipe
from colorgan.training import Cadence

DEFAULT_EPOCHS = 20.0  # the paper's
ADAM_STATES = 2


def images_to_see(images: int | None, epochs: float | None, num_samples: int, global_batch_size: int) -> int:
    """Return the images a run sees, rounded up to whole steps."""
    wanted = images if images is not None else round((epochs or DEFAULT_EPOCHS) * num_samples)
    return max(1, -(-wanted // global_batch_size)) * global_batch_size


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


def train_loader_arguments(recipe: RunRecipe, ranks: Ranks, micro_batch_size: int, targets: str) -> dict[str, Any]:
    """Return `shards.loader.Loader`'s arguments for training."""
    data = recipe.data
    return {
        **eval_loader_arguments(recipe, ranks, micro_batch_size, targets),
        "global_batch_size": recipe.batch.global_batch_size,
        "random_crop_scale": data.random_crop_min_area,
        "flip": data.flip,
        "prefetch_batches": data.prefetch_batches,
    }


def eval_loader_arguments(recipe: RunRecipe, ranks: Ranks, micro_batch_size: int, targets: str) -> dict[str, Any]:
    """Return `shards.loader.Loader`'s arguments for validation: whole pictures, each once."""
    return {
        "image_size": recipe.network.image_size,
        "global_batch_size": micro_batch_size * ranks.world_size,
        "micro_batch_size": micro_batch_size,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "seed": recipe.seed,
        "targets": targets,
        "device": str(ranks.device),
        "num_threads": recipe.data.decode_threads or cores_a_rank(),
        "ab_scale": recipe.network.ab_scale,
        "max_bad_share": recipe.data.max_bad_share,
    }


def cadence(recipe: RunRecipe, total_images: int) -> Cadence:
    """Translate a recipe's `output` section for the training loop."""
    output = recipe.output
    return Cadence(
        total_images=total_images,
        global_batch_size=recipe.batch.global_batch_size,
        log_every_images=output.log_every_images,
        validate_every_images=output.validate_every_images,
        save_every_images=output.save_every_images,
    )


def memory_bytes(networks: Mapping[str, nn.Module], image_size: int, micro_batch_size: int) -> dict[str, int]:
    """Estimate a rank's memory in bytes without allocating it: float32 weights, gradients, Adam, activations.

    Activations are the outputs of every layer for one forward pass of each network (run on the meta device).
    """
    weights = sum(p.numel() * 4 for module in networks.values() for p in module.parameters())
    activations = sum(_activation_bytes(module, image_size, micro_batch_size) for module in networks.values())
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": ADAM_STATES * weights,
        "activations": activations,
    }


def _activation_bytes(module: nn.Module, image_size: int, micro_batch_size: int) -> int:
    total = 0

    def count(part: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * 4

    handles = [part.register_forward_hook(count) for part in module.modules() if not list(part.children())]
    size = (micro_batch_size, 1, image_size, image_size)
    inputs = [torch.empty(size, device="meta")]
    if type(module).__name__ == "Discriminator":
        inputs.append(torch.empty((size[0], 2, *size[2:]), device="meta"))
    state = {name: torch.empty_like(t, device="meta") for name, t in module.state_dict().items()}
    was_training = module.training
    module.eval()
    with torch.no_grad():
        torch.func.functional_call(module, state, tuple(inputs))
    module.train(was_training)
    for handle in handles:
        handle.remove()
    return total


def plan_text(
    *, total_images: int, num_samples: int, num_shards: int, recipe: RunRecipe, ranks: Ranks, micro_batch_size: int,
    memory: Mapping[str, int],
) -> str:  # fmt: skip
    """Return the plan that `--dry_run` prints."""
    batch = recipe.batch.global_batch_size
    saves = -(-total_images // recipe.output.save_every_images) if recipe.output.save_every_images else 1
    accumulation = batch // (micro_batch_size * ranks.world_size)
    lines = [
        f"images      {total_images:,} = {total_images / num_samples:.2f} passes over {num_samples:,}"
        f" in {num_shards} shards",
        f"steps       {total_images // batch:,} of {batch} images: {ranks.world_size} ranks x "
        f"{accumulation} micro-batches x {micro_batch_size}",
        f"read        every rank reads its share of every batch, {num_shards} shards in a moving window",
        "memory      " + ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in memory.items()) + " a rank (estimated)",
        f"checkpoints {saves}, the last {recipe.output.keep_last} kept",
        f"device      {ranks.device}, {recipe.batch.precision}",
    ]
    return "\n".join(lines)
