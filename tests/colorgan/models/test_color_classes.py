"""Color as classes against the paper's equations in numpy and the gamut from scikit-image."""

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from skimage.color import rgb2lab

from colorgan.models.color_classes import (
    NUM_CLASSES,
    TEMPERATURE,
    ColorClasses,
    SoftTargets,
    class_centers,
    rebalancing_weights,
    smoothed_prior,
)
from colorgan.models.model_config import NUM_COLOR_CLASSES


def _hull_cells() -> set[tuple[int, int]]:
    """Return the corners of the grid's squares that the hull of sRGB's colors touches in ab."""
    axis = np.linspace(0, 1, 31)
    rgb = np.stack(
        np.meshgrid(axis, axis, axis, indexing="ij"),
        axis=-1,
    )
    # Solid colors on the cube's surface bound all others.
    surface = (rgb == 0).any(axis=-1) | (rgb == 1).any(axis=-1)
    ab = rgb2lab(rgb[surface][:, None])[:, 0, 1:]
    planes = ConvexHull(ab).equations

    inside = np.linspace(0.02, 9.98, 40)
    corners = set()
    for a in range(-120, 120, 10):
        for b in range(-120, 120, 10):
            points = np.stack(
                np.meshgrid(
                    a + inside,
                    b + inside,
                ),
                axis=-1,
            ).reshape(-1, 2)
            if (points @ planes[:, :2].T + planes[:, 2] <= 0).all(axis=1).any():
                corners |= {
                    (a, b),
                    (a + 10, b),
                    (a, b + 10),
                    (a + 10, b + 10),
                }
    return corners


def test_the_classes_are_the_cells_of_the_srgb_gamut():
    assert NUM_CLASSES == NUM_COLOR_CLASSES == 313
    assert (
        set(
            map(
                tuple,
                class_centers().tolist(),
            )
        )
        == _hull_cells()
    )


def _colors(number: int) -> torch.Tensor:
    rgb = np.random.default_rng(0).random((number, 1, 3))
    corners = np.array(list(np.ndindex(2, 2, 2)), dtype=float)[:, None]
    return torch.tensor(
        rgb2lab(np.concatenate([rgb, corners]))[:, 0, 1:],
        dtype=torch.float32,
    )


def test_soft_targets_are_those_of_all_distances():
    ab_N2 = _colors(3000)
    classes, shares = SoftTargets(torch.device("cpu")).soft(ab_N2)

    squared = ((ab_N2.double().numpy()[:, None] - class_centers().numpy()) ** 2).sum(axis=-1)
    nearest = np.argsort(squared, axis=1)[:, :5]
    weights = np.exp(-np.take_along_axis(squared, nearest, axis=1) / (2 * 5.0**2))
    expected = np.zeros_like(squared)
    np.put_along_axis(
        expected,
        nearest,
        weights / weights.sum(axis=1, keepdims=True),
        axis=1,
    )

    dense = torch.zeros(len(ab_N2), NUM_CLASSES).scatter_(1, classes, shares)
    assert np.abs(dense.numpy() - expected).max() < 1e-5
    assert np.array_equal(
        classes[:, 0].numpy(),
        nearest[:, 0],
    )


def test_rebalancing_is_the_papers_equation():
    pixels = torch.tensor(np.random.default_rng(1).integers(0, 1000, NUM_CLASSES))
    pixels[5:200] = 0

    prior = np.zeros(NUM_CLASSES)
    centers = class_centers().numpy().astype(float)
    for source, count in enumerate(pixels.tolist()):
        kernel = np.exp(-((centers - centers[source]) ** 2).sum(axis=1) / (2 * 5.0**2))
        prior += count / int(pixels.sum()) * kernel / kernel.sum()
    weights = 1 / (0.5 * prior + 0.5 / 313)
    weights /= (prior * weights).sum()

    assert prior.sum() == pytest.approx(1.0)
    assert np.abs(smoothed_prior(pixels, class_centers()).numpy() - prior).max() < 1e-12
    assert np.abs(rebalancing_weights(pixels, class_centers()).numpy() / weights - 1).max() < 1e-6


@pytest.mark.parametrize(
    "precision",
    [torch.float32, torch.bfloat16],
)
def test_the_annealed_mean_is_the_papers_equation(precision):
    scores = (torch.randn(2, NUM_CLASSES, 4, 4, generator=torch.manual_seed(0)) * 3).to(precision)
    scores[0, 7] = 30  # one class for sure

    logits = scores.double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sharp = np.exp(np.log(shares) / TEMPERATURE)
    sharp /= sharp.sum(axis=1, keepdims=True)
    ab = np.einsum(
        "bqhw,qc->bchw",
        sharp,
        class_centers().numpy(),
    )

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        same_size = ColorClasses(ab_scale=110.0)(scores, (4, 4))
    assert same_size.dtype == torch.float32
    assert np.abs(same_size.numpy() * 110 - ab).max() < 1e-3

    assert torch.allclose(
        same_size[0, :, 0, 0] * 110,
        class_centers()[7].float(),
        atol=1e-3,
    )


def test_enlarging_is_bilinear_and_lets_gradients_through():
    scores = torch.randn(
        1,
        NUM_CLASSES,
        4,
        4,
        generator=torch.manual_seed(1),
        requires_grad=True,
    )
    classes = ColorClasses(ab_scale=128.0)
    small = classes(scores, (4, 4))
    large = classes(scores, (16, 16))

    expected = torch.nn.functional.interpolate(
        small, size=(16, 16), mode="bilinear", align_corners=False
    )
    assert torch.allclose(large, expected, atol=1e-6)
    large.square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() > 0
