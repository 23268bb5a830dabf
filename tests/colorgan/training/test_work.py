"""The work of a step as counted beforehand, against torch's count of a real step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.toy import toy_recipe, train_toy
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from colorgan.distributed.ranks import Ranks
from colorgan.training.work import Rate, network_work, read_rate, step_flops, work_lines


@pytest.mark.parametrize("gan", ["none", "least_squares"])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_it_is_the_work_of_a_real_step(tmp_path: Path, gan: str, num_micro_batches: int) -> None:
    recipe = toy_recipe(tmp_path, loss={"gan": gan})
    batch = recipe.batch.global_batch_size
    micro = batch // num_micro_batches
    with FlopCounterMode(display=False) as counter:
        _, strategy, _ = train_toy(recipe, Ranks.single(), num_steps=1, micro_batch_size=micro)

    networks = {name: phase.module for name, phase in strategy.phases.items()}
    expected = step_flops(networks, recipe.network.image_size, micro, num_micro_batches)
    assert expected * batch == counter.get_total_flops()


def test_a_layer_by_hand_and_frozen_weights() -> None:
    # 3 x 3 kernels from 1 to 5 channels at 8 x 8 pixels, a multiplication and an addition each.
    layer = nn.Conv2d(1, 5, 3, padding=1)
    once = 2 * 9 * 5 * 64
    work = network_work(layer, 8, 4)
    # The input is the photo, which needs no gradient.
    assert (work.forward, work.weights, work.inputs) == (once, once, 0)

    layer.requires_grad_(False)
    assert network_work(layer, 8, 4).weights == 0


def test_channels_that_are_filtered_by_themselves() -> None:
    # 3 x 3 kernels, one per channel: 8 x 16 x 16 outputs; the layer before it makes 8 channels.
    once, before = 2 * 9 * 8 * 256, 2 * 8 * 256
    layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    work = network_work(layers, 16, 2)
    assert work.forward == before + once
    # Its weights and its input, and the weights of the first.
    assert work.weights == before + 2 * once


def test_a_rate_comes_from_the_doctors_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    assert read_rate(path, "fp32") is None
    path.write_text(
        json.dumps({"device": "CPU", "gflop_per_s": {"fp32": 50.0, "bf16": 0, "x": "fast"}})
    )
    assert read_rate(path, "fp32") == Rate(50.0, "CPU")
    assert read_rate(path, "bf16") is read_rate(path, "x") is read_rate(path, "y") is None
    path.write_text(json.dumps({"gflop_per_s": {"fp32": math.inf}}))
    assert read_rate(path, "fp32") is None


def test_the_lines_say_work_and_time() -> None:
    plan: dict[str, Any] = {"batch": 32, "total_images": 36_000, "form": "fp32"}
    work, time = work_lines(2.5e9, num_devices=1, rate=None, **plan)
    assert "2.5 GFLOP per image, 80 per step" in work
    assert "not known: the doctor measures this machine in fp32" in time

    _, time, source = work_lines(2.5e9, num_devices=2, rate=Rate(50.0, "CPU"), **plan)
    # 100 GFLOP/s are 40 images/s: 0.8 s a step, a quarter of an hour in all.
    assert "about 0.8 s per step, 40 images/s, 0:15:00 in all" in time
    assert "2 x 50 GFLOP/s" in source and "fp32 on CPU" in source
