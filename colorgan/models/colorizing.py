"""Color with a generator: normalised chroma for normalised luminance, and photos of any size.

Scores of the result are in colorgan/evaluation/generator_scores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.color import (
    denormalise_lab_B3HW,
    lab_to_rgb_B3HW,
    normalise_lab_B3HW,
    rgb_to_lab_B3HW,
    rgb_to_lightness_B1HW,
)
from colorgan.devices import exact_float32
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys

# Pixels that are converted at a time: some 230 bytes each, so 60 MB.
STRIP_PIXELS = 1 << 18


def color_normalised(
    generator: nn.Module, luminance_B1HW: Tensor, autocast: torch.autocast | None = None
) -> Tensor:
    """Return the generator's normalised chroma (B, 2, S, S) in float32, without gradients."""
    with torch.inference_mode():
        if autocast is None:
            out: Tensor = generator(luminance_B1HW)
        else:
            with autocast:
                out = generator(luminance_B1HW)
    # float32 whatever autocast chose: colors are converted and scored in it.
    return out.float()


def to_rgb(luminance_B1HW: Tensor, chroma_B2HW: Tensor, ab_scale: float) -> Tensor:
    """Return sRGB in [0, 1], float32, of normalised luminance and chroma."""
    lab_B3HW = torch.cat([luminance_B1HW.float(), chroma_B2HW.float()], dim=1)
    return lab_to_rgb_B3HW(denormalise_lab_B3HW(lab_B3HW, ab_scale))


@dataclass(frozen=True)
class PhotoRows:
    """A photo that is read some rows at a time.

    Attributes:
        height: In pixels.
        width: In pixels.
        read: Rows `top` to `bottom` as sRGB, uint8 or floats in [0, 1], 3 x rows x width, on the
            CPU.
    """

    height: int
    width: int
    read: Callable[[int, int], Tensor]

    @staticmethod
    def of(photo_3HW: Tensor) -> PhotoRows:
        """Return the rows of a photo in memory, sRGB in uint8 or floats in [0, 1]."""
        height, width = photo_3HW.shape[-2:]
        return PhotoRows(height, width, lambda top, bottom: photo_3HW[:, top:bottom].cpu())


@dataclass(frozen=True)
class ColorStrip:
    """Some rows of a colored photo, float32, 1 x channels x rows x width, on one device.

    Attributes:
        top: The first row's number.
        rgb_13HW: The photo's own sRGB in [0, 1].
        luminance_11HW: Its normalised luminance.
        chroma_12HW: The generator's normalised chroma, brought to the photo's size.
    """

    top: int
    rgb_13HW: Tensor
    luminance_11HW: Tensor
    chroma_12HW: Tensor


@dataclass(frozen=True)
class ChromaStrip:
    """The chroma of some rows of a photo.

    Attributes:
        top: The first row's number.
        bottom: The number of the row behind the last.
        chroma_12HW: The generator's normalised chroma, brought to the photo's size; float32.
    """

    top: int
    bottom: int
    chroma_12HW: Tensor


def chroma_strips(
    generator: nn.Module,
    photo: PhotoRows,
    *,
    image_size: int,
    ab_scale: float,
    seed: int = 0,
    strip_pixels: int = STRIP_PIXELS,
) -> Iterator[ChromaStrip]:
    """Yield the chroma of a photo of any size from top to bottom, in bounded memory.

    The photo's luminance is squashed to the network's square; the chroma that comes out is brought
    back to the photo's size (bicubic, antialiased).

    Args:
        generator: Left in the mode it was in; strips come out on its device.
        photo: Read once, before the first strip comes out.
        image_size: Side of the network's square.
        ab_scale: Divisor of a and b.
        seed: Of the dropout of "paper" inference.
        strip_pixels: Pixels of a strip; one row at least.
    """
    device = next(generator.parameters()).device
    rows = max(1, strip_pixels // photo.width)

    luminance_B1HW = luminance_square(photo, image_size, strip_pixels)
    set_dropout_keys(generator, dropout_keys(seed, torch.zeros(1, dtype=torch.int64)))
    # TF32 would make a photo's colors depend on the card.
    with evaluating(generator), exact_float32():
        small_chroma = color_normalised(generator, luminance_B1HW.to(device))

    # Clamped after the resize, which overshoots. Tanh ends at 1; classes of color may go further.
    limit = max(1.0, float(small_chroma.abs().max()))
    # Height first, on the CPU; the width of each strip when its turn comes.
    tall_chroma = resized(small_chroma.cpu(), (photo.height, image_size))
    for top in range(0, photo.height, rows):
        bottom = min(top + rows, photo.height)
        narrow = tall_chroma[:, :, top:bottom].to(device)
        wide = resized(narrow, (bottom - top, photo.width))
        yield ChromaStrip(top, bottom, wide.clamp(-limit, limit))


def color_strips(
    generator: nn.Module,
    photo: PhotoRows,
    *,
    image_size: int,
    ab_scale: float,
    seed: int = 0,
    strip_pixels: int = STRIP_PIXELS,
) -> Iterator[ColorStrip]:
    """Yield a photo's rows with the chroma of `chroma_strips`, whose arguments these are.

    The photo is read twice, from top to bottom.
    """
    strips = chroma_strips(
        generator,
        photo,
        image_size=image_size,
        ab_scale=ab_scale,
        seed=seed,
        strip_pixels=strip_pixels,
    )
    for strip in strips:
        rows_3HW = photo.read(strip.top, strip.bottom)
        rgb_13HW = _unit(rows_3HW[None].to(strip.chroma_12HW.device))
        luminance_11HW = rgb_to_lightness_B1HW(rgb_13HW) / 50.0 - 1.0
        yield ColorStrip(strip.top, rgb_13HW, luminance_11HW, strip.chroma_12HW)


def luminance_square(photo: PhotoRows, image_size: int, strip_pixels: int = STRIP_PIXELS) -> Tensor:
    """Return a photo's normalised luminance, squashed to a network's square, on the CPU.

    Float32, 1 x 1 x image_size x image_size.
    """
    rows = max(1, strip_pixels // photo.width)
    # Bicubic overshoots at edges; Lab of values outside sRGB is not defined.
    small_B3HW = _shrunk(photo, image_size, rows).clamp(0.0, 1.0)
    return normalise_lab_B3HW(rgb_to_lab_B3HW(small_B3HW))[:, :1].float()


def _unit(rgb: Tensor) -> Tensor:
    """Return bytes as float32 in [0, 1], and floats as float32."""
    return rgb.float() / 255.0 if rgb.dtype == torch.uint8 else rgb.float()


def _shrunk(photo: PhotoRows, side: int, rows: int) -> Tensor:
    """Return the photo as a float32 square in [0, 1], 1 x 3 x side x side, on the CPU.

    Never on a GPU: its antialiasing kernel keeps all weights of an output pixel in 48 KiB of shared
    memory and refuses to shrink by more than about 47. Width first and some rows at a time, so that
    no float copy of the photo is made.
    """
    # One tensor for all: between the strips' large ones, small ones that live on would keep the
    # memory of those from being used again, 300 MB at 100 megapixels.
    narrow_13HW = torch.empty(1, 3, photo.height, side)
    for top in range(0, photo.height, rows):
        bottom = min(top + rows, photo.height)
        rgb_13HW = _unit(photo.read(top, bottom)[None])
        narrow_13HW[:, :, top:bottom] = resized(rgb_13HW, (bottom - top, side))
    return resized(narrow_13HW, (side, side))


def color_photo(
    generator: nn.Module, photo_3HW: Tensor, *, image_size: int, ab_scale: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Color a photo of any size: chroma at the network's size, luminance at the photo's own.

    See `color_strips`.

    Args:
        generator: Left in the mode it was in.
        photo_3HW: sRGB, uint8 or floats in [0, 1]; its own colors are not used.
        image_size: Side of the network's square.
        ab_scale: Divisor of a and b.
        seed: Of the dropout of "paper" inference.

    Returns:
        grey and colored photo, float32 sRGB in [0, 1], 3HW, on the generator's device.
    """
    grey, colored = [], []
    photo = PhotoRows.of(photo_3HW)
    for strip in color_strips(
        generator, photo, image_size=image_size, ab_scale=ab_scale, seed=seed
    ):
        # Grey by the same way as color, so that the two differ in chroma alone.
        none_12HW = torch.zeros_like(strip.chroma_12HW)
        grey.append(to_rgb(strip.luminance_11HW, none_12HW, ab_scale))
        colored.append(to_rgb(strip.luminance_11HW, strip.chroma_12HW, ab_scale))
    return torch.cat(grey, dim=2)[0], torch.cat(colored, dim=2)[0]


def lab_and_predicted(
    generator: nn.Module, photo_3HW: Tensor, image_size: int, ab_scale: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Return a photo's own normalised Lab and its predicted chroma, float32; see `color_strips`."""
    photo = PhotoRows.of(photo_3HW)
    # Whole in memory: scores compare pixels of the whole photo.
    strips = list(
        color_strips(generator, photo, image_size=image_size, ab_scale=ab_scale, seed=seed)
    )
    rgb_13HW = torch.cat([strip.rgb_13HW for strip in strips], dim=2)
    lab_13HW = normalise_lab_B3HW(rgb_to_lab_B3HW(rgb_13HW), ab_scale).float()
    return lab_13HW, torch.cat([strip.chroma_12HW for strip in strips], dim=2)


def resized(picture_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image at another height and width: bicubic, antialiased where it shrinks.

    Values may leave their range a little. A side that stays as it is is copied exactly.
    """
    return F.interpolate(picture_BCHW, size, mode="bicubic", antialias=True, align_corners=False)
