"""States of a network: weights from a seed, keys of its dropout, two meanings of eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from colorgan.devices import to_device
from colorgan.models.layers import BatchNorm, KeyedDropout, SelfDrawn

Inference = Literal["running", "paper"]


def initialise(module: nn.Module, seed: int) -> None:
    """Draw every convolution and dense weight from N(0, 0.02), biases 0, norms 1 and 0.

    A backbone draws its own weights by its own rule. A function of `seed` alone.
    """
    own = [part for part in module.modules() if isinstance(part, SelfDrawn)]
    for network in own:
        network.draw(seed)
    drawn = {part for network in own for part in network.modules()}

    # A generator of its own, on the CPU: the result depends on nothing drawn before.
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if part not in drawn and isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            with torch.no_grad():
                # 0.02 as in DCGAN and pix2pix; biases are drawn from nothing, so that adding one
                # moves no draw.
                part.weight.copy_(torch.randn(part.weight.shape, generator=random) * 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def set_dropout_keys(module: nn.Module, keys_B: Tensor) -> None:
    """Give every dropout layer of `module` the keys of the next batch, int32, one per sample.

    They are copied to the module's device once, for all layers, and the host does not wait for the
    copy.
    """
    layers = [part for part in module.modules() if isinstance(part, KeyedDropout)]
    parameter = next(module.parameters(), None)
    if layers and parameter is not None:
        # Once for all layers: each would start a copy of its own otherwise.
        keys_B = to_device(keys_B, parameter.device)
    for layer in layers:
        layer.keys_B = keys_B


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While open, `module` is in eval mode.

    Each of its parts then goes back to the mode it was in.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            # Part by part: a stage with frozen features has parts in either mode.
            part.training = mode


@contextmanager
def moving_statistics(module: nn.Module, *, num_passes: int) -> Iterator[None]:
    """While open, one pass of a batch moves running statistics as `num_passes` passes would.

    `num_passes` times r <- (1 - m) r + m b is once r <- (1 - m)^n r + (1 - (1 - m)^n) b.
    """
    norms: list[tuple[nn.BatchNorm2d, float]] = []
    for part in module.modules():
        # In evaluation mode they do not move at all. Without a momentum they are a plain mean, to
        # which a batch that counts twice adds nothing new.
        if isinstance(part, nn.BatchNorm2d) and part.training and part.momentum is not None:
            norms.append((part, part.momentum))

    for norm, momentum in norms:
        norm.momentum = 1.0 - (1.0 - momentum) ** num_passes
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
        counters = [n.num_batches_tracked for n, _ in norms if n.num_batches_tracked is not None]
        if counters:
            torch._foreach_add_(counters, num_passes - 1)


@contextmanager
def using_inference(module: nn.Module, inference: Inference) -> Iterator[None]:
    """While open, `module.eval()` means `inference` (see `set_inference`).

    Then what it meant before.
    """
    norms: list[tuple[BatchNorm, bool]] = []
    dropouts: list[tuple[KeyedDropout, bool]] = []
    for part in module.modules():
        if isinstance(part, BatchNorm):
            norms.append((part, part.batch_statistics_at_inference))
        elif isinstance(part, KeyedDropout):
            dropouts.append((part, part.at_inference))

    set_inference(module, inference)
    try:
        yield
    finally:
        for norm, flag in norms:
            norm.batch_statistics_at_inference = flag
        for dropout, flag in dropouts:
            dropout.at_inference = flag


def set_inference(module: nn.Module, inference: Inference) -> None:
    """Choose what `module.eval()` means.

    Args:
        module: Changed in place.
        inference: "running" statistics without dropout, or "paper": the batch's own statistics and
            dropout left on (pix2pix's way; the result then depends on the other images of the
            batch).
    """
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.batch_statistics_at_inference = inference == "paper"
        elif isinstance(part, KeyedDropout):
            part.at_inference = inference == "paper"


def dropout_keys(seed: int, positions_B: Tensor) -> Tensor:
    """Return one int32 key per sample for `KeyedDropout`.

    A function of the seed and of the sample's position.

    `positions_B` (int64) numbers every sample of a run once, so a key belongs to one image of one
    step, whichever rank or micro-batch it is in.
    """
    # splitmix64 in NumPy: torch has no unsigned 64-bit arithmetic.
    mixed = positions_B.numpy().astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((mixed >> np.uint64(32)).astype(np.uint32).view(np.int32).copy())
