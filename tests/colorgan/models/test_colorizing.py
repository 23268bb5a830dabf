"""Photos colored in strips: what the whole photo at once gives, whatever the strips."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import small_config
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.color import normalise_lab_B3HW, rgb_to_lab_B3HW
from colorgan.models.colorizing import PhotoRows, color_photo, color_strips, to_rgb
from colorgan.models.model_folder import build_model
from colorgan.models.modes import evaluating, initialise

AB_SCALE = 110.0


@pytest.fixture(scope="module")
def generator() -> nn.Module:
    network = build_model(small_config("generator"))
    initialise(network, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # so that colors differ from place to place
    return network.eval()


def noise(height: int, width: int) -> Tensor:
    """Return a smooth photo: noise at an eighth of the size, enlarged."""
    random = torch.Generator().manual_seed(height * width)
    small = torch.rand(
        1,
        3,
        height // 8 + 1,
        width // 8 + 1,
        generator=random,
    )
    large = F.interpolate(small, (height, width), mode="bilinear")

    return (large[0] * 255).to(torch.uint8)


def at_once(generator: nn.Module, photo_3HW: Tensor) -> Tensor:
    """Return the colored photo as one interpolation each way gives it."""
    rgb_13HW = photo_3HW[None].float() / 255.0
    small = F.interpolate(
        rgb_13HW,
        (32, 32),
        mode="bicubic",
        antialias=True,
    ).clamp(
        0.0,
        1.0,
    )
    luminance = normalise_lab_B3HW(rgb_to_lab_B3HW(small), AB_SCALE)[:, :1]
    with evaluating(generator), torch.no_grad():
        chroma = generator(luminance)

    size = photo_3HW.shape[-2:]
    large = F.interpolate(
        chroma,
        size,
        mode="bicubic",
        antialias=True,
    ).clamp(
        -1.0,
        1.0,
    )
    lab_13HW = normalise_lab_B3HW(rgb_to_lab_B3HW(rgb_13HW), AB_SCALE)
    return to_rgb(lab_13HW[:, :1], large, AB_SCALE)[0]


@pytest.mark.parametrize(
    "size",
    [
        (70, 130),
        (130, 70),
        (8, 200),
        (32, 32),
        (20, 11),
    ],
)
def test_strips_are_the_photo_at_once(generator: nn.Module, size: tuple[int, int]) -> None:
    photo_3HW = noise(*size)
    _, colored_3HW = color_photo(
        generator,
        photo_3HW,
        image_size=32,
        ab_scale=AB_SCALE,
    )
    expected_3HW = at_once(generator, photo_3HW)

    assert float((colored_3HW - expected_3HW).abs().max()) < 1e-3
    assert float((colored_3HW - expected_3HW).abs().mean()) < 1e-5
    assert float(colored_3HW.std(dim=0).mean()) > 0.005


@pytest.mark.parametrize("strip_pixels", [1, 1000, 3333])
def test_the_height_of_strips_changes_nothing(generator: nn.Module, strip_pixels: int) -> None:
    photo = PhotoRows.of(noise(61, 90))

    def strips(pixels: int) -> tuple[list[int], Tensor, Tensor]:
        found = list(
            color_strips(generator, photo, image_size=32, ab_scale=AB_SCALE, strip_pixels=pixels)
        )
        luminance = torch.cat([strip.luminance_11HW for strip in found], dim=2)
        chroma_12HW = torch.cat([strip.chroma_12HW for strip in found], dim=2)
        return [strip.top for strip in found], luminance, chroma_12HW

    tops, luminance, chroma_12HW = strips(strip_pixels)
    whole_tops, whole_luminance, whole_chroma = strips(61 * 90)
    rows = max(1, strip_pixels // 90)
    assert (tops, whole_tops) == (list(range(0, 61, rows)), [0])
    assert torch.allclose(luminance, whole_luminance, atol=1e-6)
    assert torch.allclose(chroma_12HW, whole_chroma, atol=1e-6)


def test_rows_are_read_twice_in_order_and_may_be_overwritten_once_out(
    generator: nn.Module,
) -> None:
    photo_3HW = noise(40, 50)
    expected = color_photo(generator, photo_3HW, image_size=32, ab_scale=AB_SCALE)[1]
    overwritten_3HW = photo_3HW.clone()
    colored = []
    for strip in color_strips(
        generator,
        PhotoRows.of(overwritten_3HW),
        image_size=32,
        ab_scale=AB_SCALE,
        strip_pixels=350,
    ):
        colored.append(to_rgb(strip.luminance_11HW, strip.chroma_12HW, AB_SCALE))
        overwritten_3HW[:, strip.top : strip.top + strip.rgb_13HW.shape[2]] = 0

    assert not overwritten_3HW.any()
    assert torch.allclose(
        torch.cat(colored, dim=2)[0],
        expected,
        atol=1e-5,
    )
