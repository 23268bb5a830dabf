"""Floating-point operations of a pretraining step, and how long this machine takes for them.

Counted by torch on the meta device: convolutions and matrix products, as FlopCounterMode knows
them, a multiplication and an addition as two. The doctor measures how many a second a training step
here reaches, and leaves that in doctor.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from colorgan.files import mapping, number, read_json, short
from colorgan.training.memory import on_meta

# Written by colorgan/doctor, into the folder in which it is started.
DOCTOR_RECORD = "doctor.json"
RATES = "gflop_per_s"  # the record's group: a rate by `form_text`
MAX_NAME = 100


@dataclass(frozen=True)
class Work:
    """Operations of one image's way through a network.

    Attributes:
        forward: Of the forward pass.
        weights: Of the backward pass to the weights that are trained.
        inputs: Of the backward pass to the last input alone; 0 where that needs no gradient.
    """

    forward: float
    weights: float
    inputs: float


@dataclass(frozen=True)
class Rate:
    """What a training step reached on a machine, in GFLOP/s, and the device's name."""

    gflop_per_s: float
    device: str


def step_flops(
    networks: Mapping[str, nn.Module],
    image_size: int,
    micro_batch_size: int,
    num_micro_batches: int = 1,
) -> float:
    """Return the operations of a pretraining step per image, without running it.

    Generators learn by one pass. A discriminator sees real and fake in its own turn, and the fake
    once more in the generator's, where its weights rest. Where a rank's batch is cut into several
    micro-batches, the generator runs forward once more, for the discriminator's turn.
    """
    total = 0.0
    for name, module in networks.items():
        work = network_work(module, image_size, micro_batch_size)
        if name == "discriminator":
            total += 3 * work.forward + 2 * work.weights + work.inputs
            continue
        total += work.forward + work.weights
        if "discriminator" in networks and num_micro_batches > 1:
            total += work.forward
    return total


def network_work(module: nn.Module, image_size: int, micro_batch_size: int) -> Work:
    """Return the operations of a network in training, per image."""
    with on_meta(module, image_size, micro_batch_size) as shadow:
        with FlopCounterMode(display=False) as counter:
            output = shadow.forward()
        forward = counter.get_total_flops()

        trained = [tensor for tensor in shadow.state.values() if tensor.requires_grad]
        weights = _backward_flops(output, trained)
        inputs = _backward_flops(output, [each for each in shadow.inputs if each.requires_grad])
    return Work(forward / micro_batch_size, weights / micro_batch_size, inputs / micro_batch_size)


def _backward_flops(output: Tensor, sought: Sequence[Tensor]) -> int:
    if not sought or not output.requires_grad:
        return 0
    counted_by = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=counted_by) as counter:
        # Kept, as both ways back start from one forward pass.
        torch.autograd.grad(output.sum(), sought, retain_graph=True, allow_unused=True)
    flops: int = counter.get_total_flops()
    return flops


def _convolution_backward_flops(
    grad_shape: list[int],
    input_shape: list[int],
    weight_shape: list[int],
    *others: Any,
    **keywords: Any,
) -> int:
    """Return the operations of a convolution's backward pass: each gradient costs the forward's.

    torch's own count (2.13) takes the weights' gradient of a grouped convolution for that of a
    dense one: 144 times too many where each of 144 channels is filtered by itself.
    """
    transposed, output_mask = others[4], others[7]
    forward = conv_flop_count(input_shape, weight_shape, grad_shape, transposed=transposed)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


def form_text(precision: str, *, channels_last: bool) -> str:
    """Return the name of a way to compute: "fp32", "bf16 channels_last"."""
    return f"{precision}{' channels_last' if channels_last else ''}"


def read_rate(path: Path, form: str) -> Rate | None:
    """Return the rate of a form in a doctor's record; None where there is none, or no record."""
    record = read_json(path)
    rate = number(mapping(record.get(RATES)).get(form))
    if rate is None or not 0 < rate < math.inf:
        return None
    return Rate(rate, short(record.get("device", ""), MAX_NAME))


def work_lines(
    flops_per_image: float,
    *,
    batch: int,
    total_images: int,
    num_devices: int,
    form: str,
    rate: Rate | None,
) -> list[str]:
    """Return the plan's lines about work and time.

    Args:
        flops_per_image: As `step_flops` counts them.
        batch: The global batch.
        total_images: Of the run.
        num_devices: That compute side by side; ranks on one CPU share it.
        form: Precision and memory format, by `form_text`.
        rate: As measured in that form; None: the plan has no time.
    """
    gflop = flops_per_image / 1e9
    lines = [
        f"work        {gflop:,.4g} GFLOP per image, {gflop * batch:,.4g} per step (counted: "
        "convolutions, matrix products)"
    ]
    if rate is None:
        lines.append(
            f"time        not known: the doctor measures this machine in {form}, into "
            f"{DOCTOR_RECORD} in this folder"
        )
        return lines

    images_per_s = rate.gflop_per_s * num_devices / gflop
    lines.append(
        f"time        about {batch / images_per_s:,.2g} s per step, {images_per_s:,.3g} images/s, "
        f"{timedelta(seconds=round(total_images / images_per_s))} in all"
    )
    devices = f"{num_devices} x " if num_devices > 1 else ""
    lines.append(
        f"            at {devices}{rate.gflop_per_s:,.0f} GFLOP/s, which a small U-Net reached in "
        f"{form} on {rate.device} ({DOCTOR_RECORD})"
    )
    return lines
