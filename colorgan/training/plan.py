"""What a run will do, worked out before it does it: lengths, batches, loader arguments, memory, the dry run's page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.config.recipe import RunRecipe
from colorgan.distributed.ranks import Ranks, cores_a_rank, num_nodes
from colorgan.errors import UsageError
from colorgan.models.unet import set_dropout_keys
from colorgan.training.loop import Cadence

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
    """Return `shards.loading.loader.Loader`'s arguments for training."""
    data = recipe.data
    return {
        **eval_loader_arguments(recipe, ranks, micro_batch_size, targets),
        "global_batch_size": recipe.batch.global_batch_size,
        "random_crop_scale": data.random_crop_min_area,
        "flip": data.flip,
        "prefetch_batches": data.prefetch_batches,
    }


def eval_loader_arguments(recipe: RunRecipe, ranks: Ranks, micro_batch_size: int, targets: str) -> dict[str, Any]:
    """Return `shards.loading.loader.Loader`'s arguments for validation: whole pictures, each once."""
    return {
        **whole_set_arguments(ranks, micro_batch_size, targets),
        "image_size": recipe.network.image_size,
        "seed": recipe.seed,
        "num_threads": recipe.data.decode_threads or cores_a_rank(),
        "hardware_decoder_share": recipe.data.hardware_decoder_share,
        "ab_scale": recipe.network.ab_scale,
        "max_bad_share": recipe.data.max_bad_share,
    }


def whole_set_arguments(ranks: Ranks, micro_batch_size: int, targets: str) -> dict[str, Any]:
    """Return `shards.loading.loader.Loader`'s arguments for one pass over a set, but for the picture's size and ab's scale."""
    return {
        "global_batch_size": micro_batch_size * ranks.world_size,
        "micro_batch_size": micro_batch_size,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "num_nodes": num_nodes(ranks.world_size),
        "targets": targets,
        "device": str(ranks.device),
        "num_threads": cores_a_rank(),
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

    Activations are what autograd keeps of a micro-batch until its backward (run on the meta device). Of a GAN it is the
    larger of its two turns: the discriminator twice (real, fake), or the generator with the discriminator behind it.
    """
    weights = sum(p.numel() * 4 for module in networks.values() for p in module.parameters())
    kept = {name: activation_bytes(module, image_size, micro_batch_size) for name, module in networks.items()}
    discriminator = kept.get("discriminator", 0)
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": ADAM_STATES * weights,
        "activations": max(2 * discriminator, sum(kept.values())),
    }


def activation_bytes(module: nn.Module, image_size: int, micro_batch_size: int) -> int:
    """Return the bytes that autograd keeps of one forward pass in training, weights left out."""
    inputs = [torch.empty((micro_batch_size, 1, image_size, image_size), device="meta")]
    if type(module).__name__ == "Discriminator":
        inputs.append(torch.empty((micro_batch_size, 2, image_size, image_size), device="meta", requires_grad=True))
    state = {name: torch.empty_like(t, device="meta") for name, t in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state[name].requires_grad_(parameter.requires_grad)
    modes = [(part, part.training) for part in module.modules()]
    set_dropout_keys(module.train(), torch.zeros(micro_batch_size, dtype=torch.int32))
    with count_saved([*state.values()]) as saved, torch.enable_grad():
        output = torch.func.functional_call(module, state, tuple(inputs))
    del output
    for part, mode in modes:
        part.training = mode
    return saved.num_bytes


@dataclass
class Saved:
    """Counts what autograd keeps for the backward pass, each storage once."""

    num_bytes: int = 0
    _seen: dict[int, Tensor] = field(default_factory=dict)  # holds the tensors, so that no address is used again

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor.detach()
            self.num_bytes += storage.nbytes()
        return tensor


@contextmanager
def count_saved(weights: Iterable[Tensor]) -> Iterator[Saved]:
    """While open, count what forward passes leave for their backward; `weights` are there anyway and left out."""
    saved = Saved()
    for tensor in weights:
        saved._seen[tensor.untyped_storage()._cdata] = tensor.detach()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def held_bytes(strategy: str, memory: Mapping[str, int], world_size: int) -> int:
    """Return the bytes that a rank holds under a strategy (Rajbhandari et al. 2020, section 5).

    ZeRO shares out the optimizer (1), also the gradients (2), also the weights (3); its optimizer works on a float32
    copy of its share of the weights. Without buffers for communication, which are settings of DeepSpeed.
    """
    stage = STRATEGIES.index(strategy)
    copy = memory["weights"] if stage else 0
    shared = [copy + memory["optimizer"], memory["gradients"], memory["weights"]]
    whole, split = sum(shared[max(1, stage) :]) if stage else sum(shared), sum(shared[:stage])
    return whole + split // world_size + memory["activations"]


def sent_bytes(strategy: str, weights: int, world_size: int, num_micro_batches: int) -> int:
    """Return the bytes that a rank sends a step, at least: ring collectives move (N - 1) / N of the data each.

    DDP and ZeRO-1: gradients reduced and weights (or sums) gathered once a step. ZeRO-2 reduces after every
    micro-batch; ZeRO-3 also gathers the weights for every forward and backward pass.
    """
    passes = {"ddp": 2, "zero1": 2, "zero2": num_micro_batches + 1, "zero3": 3 * num_micro_batches}[strategy]
    return passes * weights * (world_size - 1) // world_size


def plan_text(
    *, total_images: int, num_samples: int, num_shards: int, recipe: RunRecipe, ranks: Ranks, micro_batch_size: int,
    memory: Mapping[str, int],
) -> str:  # fmt: skip
    """Return the plan that `--dry_run` prints."""
    batch = recipe.batch.global_batch_size
    saves = -(-total_images // recipe.output.save_every_images) if recipe.output.save_every_images else 1
    accumulation = batch // (micro_batch_size * ranks.world_size)
    stored = memory["weights"] + memory["optimizer"]
    lines = [
        f"images      {total_images:,} = {total_images / num_samples:.2f} passes over {num_samples:,}"
        f" in {num_shards} shards",
        f"steps       {total_images // batch:,} of {batch} images: {ranks.world_size} ranks x "
        f"{accumulation} micro-batches x {micro_batch_size}",
        f"read        every rank reads its share of every batch, {num_shards} shards in a moving window",
        "memory      " + ", ".join(f"{k} {_mib(v)}" for k, v in memory.items()) + " (estimated, float32)",
        *_strategy_lines(memory, ranks.world_size, accumulation),
        f"checkpoints {saves} of {_mib(stored)} (and the weight average, where there is one), "
        f"the last {recipe.output.keep_last} kept: {_mib(min(saves, recipe.output.keep_last) * stored)} on the disk",
        f"device      {ranks.device}, {recipe.batch.precision}",
    ]
    return "\n".join(lines)


def _strategy_lines(memory: Mapping[str, int], world_size: int, num_micro_batches: int) -> list[str]:
    lines = []
    for strategy in STRATEGIES:
        sent = sent_bytes(strategy, memory["weights"], world_size, num_micro_batches)
        held = held_bytes(strategy, memory, world_size)
        lines.append(f"  {strategy:9} {_mib(held)} a rank, sends {_mib(sent)} a rank and step")
    return lines


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.0f} KiB"
