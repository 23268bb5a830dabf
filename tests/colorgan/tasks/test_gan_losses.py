"""Adversarial losses, schedules and dropout keys against hand computations."""

import math

import pytest
import torch

from colorgan.models.modes import dropout_keys
from colorgan.tasks.gan_losses import GAN_LOSSES
from colorgan.training.schedules import learning_rate_schedule


def test_gan_losses_by_hand() -> None:
    x = torch.tensor([[0.3, -1.2]])
    softplus = [math.log1p(math.exp(v)) for v in (0.3, -1.2)]
    softplus_minus = [math.log1p(math.exp(-v)) for v in (0.3, -1.2)]
    bce = GAN_LOSSES["bce"]

    assert float(bce.real(x)) == pytest.approx(sum(softplus_minus) / 2)
    assert float(bce.fake(x)) == pytest.approx(sum(softplus) / 2)
    assert float(bce.generator(x)) == pytest.approx(sum(softplus_minus) / 2)

    squares = GAN_LOSSES["least_squares"]
    assert float(squares.real(x)) == pytest.approx((0.7**2 + 2.2**2) / 2)
    assert float(squares.fake(x)) == pytest.approx((0.3**2 + 1.2**2) / 2)
    assert [GAN_LOSSES[name].threshold for name in ("bce", "least_squares", "hinge")] == [
        0.0,
        0.5,
        0.0,
    ]

    hinge = GAN_LOSSES["hinge"]
    assert float(hinge.real(x)) == pytest.approx((0.7 + 2.2) / 2)
    assert float(hinge.fake(x)) == pytest.approx(1.3 / 2)
    assert float(hinge.generator(x)) == pytest.approx(0.9 / 2)


def test_schedules() -> None:
    constant = learning_rate_schedule(2.0, schedule="constant", total_images=100, warmup_images=10)
    assert [constant(n) for n in (0, 5, 10, 99)] == [0.0, 1.0, 2.0, 2.0]
    linear = learning_rate_schedule(2.0, schedule="linear", total_images=100, decay_start=0.5)
    assert [linear(n) for n in (0, 50, 75, 100, 120)] == pytest.approx([2.0, 2.0, 1.0, 0.0, 0.0])
    cosine = learning_rate_schedule(2.0, schedule="cosine", total_images=100, first_image=1000)
    assert [cosine(n) for n in (1000, 1050, 1100)] == pytest.approx([2.0, 1.0, 0.0], abs=1e-12)


def test_dropout_keys_belong_to_the_slot_and_the_seed() -> None:
    slots = torch.arange(5000)
    keys = dropout_keys(1, slots)

    assert keys.dtype == torch.int32
    assert len(set(keys.tolist())) > 4990
    assert torch.equal(
        dropout_keys(1, slots[100:110]),
        keys[100:110],
    )
    assert (dropout_keys(2, slots) == keys).sum() < 5
