"""Bytes a rank holds and sends under each strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from colorgan.models.discriminator import Discriminator
from colorgan.models.modes import set_dropout_keys

ADAM_STATES = 2


def memory_bytes(
    networks: Mapping[str, nn.Module],
    image_size: int,
    micro_batch_size: int,
    num_micro_batches: int = 1,
    averaged: nn.Module | None = None,
) -> dict[str, int]:
    """Estimate a rank's memory in bytes without allocating it.

    Weights, the average of one network's, gradients and Adam's moments are float32. Activations are
    what autograd keeps of a micro-batch until its backward pass (run on the meta device). For a GAN
    it is the discriminator twice (real, fake) beside the generator, whose one pass serves both
    turns. Where a rank's batch is cut into several micro-batches it is the larger of the two turns:
    the discriminator twice, or the generator with the discriminator behind it.
    """
    weights = weight_bytes(*networks.values())
    kept = {
        name: activation_bytes(module, image_size, micro_batch_size)
        for name, module in networks.items()
    }

    discriminator = kept.get("discriminator", 0)
    together = sum(kept.values())
    if num_micro_batches == 1:
        # The generator's graph waits while the discriminator's turn has both of its own.
        together += discriminator
    average = weight_bytes(averaged) if averaged is not None else 0
    return {
        "weights": weights,
        **({"average": average} if average else {}),
        "gradients": weights,
        "optimizer": ADAM_STATES * weights,
        "activations": max(2 * discriminator, together),
    }


def weight_bytes(*modules: nn.Module) -> int:
    """Return the bytes of all their weights in float32."""
    return sum(p.numel() * 4 for module in modules for p in module.parameters())


def activation_bytes(module: nn.Module, image_size: int, micro_batch_size: int) -> int:
    """Return the bytes that autograd keeps of one forward pass in training, without weights."""
    with on_meta(module, image_size, micro_batch_size) as shadow:
        with count_saved(shadow.state.values()) as saved:
            output = shadow.forward()
        # The last tensor is no activation that autograd keeps: it is gone before the backward pass.
        del output
    return saved.num_bytes


@dataclass(frozen=True)
class Shadow:
    """A network on the meta device: shapes are traced, and no weight or activation is allocated.

    Attributes:
        state: Stand-ins of its parameters and buffers.
        inputs: Of a micro-batch; a discriminator's last one is the chroma, which needs a gradient.
        forward: One pass in training.
    """

    state: dict[str, Tensor]
    inputs: list[Tensor]
    forward: Callable[[], Tensor]


@contextmanager
def on_meta(module: nn.Module, image_size: int, micro_batch_size: int) -> Iterator[Shadow]:
    """Yield a network's shadow, with gradients on; its parts' modes are restored at the end."""
    size = (image_size, image_size)
    inputs = [torch.empty((micro_batch_size, 1, *size), device="meta")]
    if isinstance(module, Discriminator):
        chroma = torch.empty((micro_batch_size, 2, *size), device="meta", requires_grad=True)
        inputs.append(chroma)

    state = {name: torch.empty_like(t, device="meta") for name, t in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state[name].requires_grad_(parameter.requires_grad)

    # Part by part: in fine-tuning, frozen parts are in evaluation mode and must stay there.
    modes = [(part, part.training) for part in module.modules()]
    set_dropout_keys(module.train(), torch.zeros(micro_batch_size, dtype=torch.int32))
    with torch.enable_grad():
        yield Shadow(
            state, inputs, lambda: torch.func.functional_call(module, state, tuple(inputs))
        )

    for part, mode in modes:
        part.training = mode


@dataclass
class Saved:
    """Counts what autograd keeps for the backward pass, each storage once."""

    num_bytes: int = 0
    # The tensors are held, so that no address is used again.
    _seen: dict[int, Tensor] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor.detach()
            self.num_bytes += storage.nbytes()
        return tensor


@contextmanager
def count_saved(weights: Iterable[Tensor]) -> Iterator[Saved]:
    """While open, count what forward passes keep for their backward pass, without `weights`."""
    saved = Saved()
    for tensor in weights:
        # Marked as seen beforehand: autograd saves weights too, which are counted elsewhere.
        saved._seen[tensor.untyped_storage()._cdata] = tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def held_bytes(strategy: str, memory: Mapping[str, int], world_size: int) -> int:
    """Return the bytes on each rank under a strategy (Rajbhandari et al. 2020, section 5).

    ZeRO spreads the optimizer over the ranks (stage 1), also the gradients (2), also the weights
    (3), and the average in every stage. Its optimizer works on a float32 copy of the rank's part of
    the weights. Buffers for communication, which are settings of DeepSpeed, are not counted.
    """
    stage = STRATEGIES.index(strategy)
    # DeepSpeed steps on a float32 master copy; DDP's optimizer steps on the weights themselves.
    copy = memory["weights"] if stage else 0
    parts = [copy + memory["optimizer"], memory["gradients"], memory["weights"]]
    spread, whole = sum(parts[:stage]), sum(parts[stage:])
    average = memory.get("average", 0)
    spread, whole = (spread + average, whole) if stage else (spread, whole + average)
    return whole + spread // world_size + memory["activations"]


def sent_bytes(strategy: str, weights: int, world_size: int, num_micro_batches: int) -> int:
    """Return the least number of bytes that a rank sends per step.

    Ring collectives move (N - 1) / N of the data each. DDP and ZeRO-1 reduce gradients and gather
    weights (or sums) once per step. ZeRO-2 reduces after every micro-batch. ZeRO-3 also gathers the
    weights for every forward and backward pass.
    """
    passes = {
        # An all-reduce is a reduce-scatter and an all-gather: each sends the data once.
        "ddp": 2,
        "zero1": 2,
        "zero2": num_micro_batches + 1,
        "zero3": 3 * num_micro_batches,
    }
    return passes[strategy] * weights * (world_size - 1) // world_size
