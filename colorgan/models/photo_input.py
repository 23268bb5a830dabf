"""Photos as users hold them in Python, taken as sRGB: PIL images, numpy arrays, tensors.

    PIL       any size and mode but 32-bit ones; upright by EXIF, transparency laid on white
    numpy     H x W (grey), H x W x 1 or H x W x 3
    tensor    H x W (grey), 1 x H x W or 3 x H x W, on any device
    numbers   uint8, or floats from 0 to 1

Anything whose brightness or axes could be read in two ways is refused: a photo of 0 to 255 in
floats, say, or one normalised by a mean, would silently come out white or black.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from colorgan.errors import UsageError

CHANNELS = (1, 3)
MAX_DEEP_GREY = 65535
DEEP_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
WHITE = (255, 255, 255, 255)
FLOATS = "floats are sRGB from 0 to 1, without a mean or deviation taken off"


def as_photo(image: Any) -> Tensor:
    """Return a photo as 3 x H x W sRGB: uint8, or float32 in [0, 1].

    Grey is repeated in the three channels. A tensor stays on its device.

    Args:
        image: A PIL image, a numpy array or a tensor, as the module's docstring lists them.

    Raises:
        UsageError: It is something else, is empty, or could be read in two ways.
    """
    if isinstance(image, Image.Image):
        return _of_pil(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Tensor):
        return _of_tensor(image)
    if isinstance(image, str | Path):
        raise UsageError(f"{image} is a path, not a photo: give PIL.Image.open({str(image)!r})")
    raise UsageError(
        f"a photo is a PIL image, a numpy array or a tensor, not a {type(image).__name__}"
    )


def as_photos(images: Any) -> tuple[list[Any], bool]:
    """Return several photos one by one, not yet read, and whether only one was given.

    Args:
        images: A photo as `as_photo` takes it, several of them in a list or another iterable, or an
            array or tensor of four axes.
    """
    if isinstance(images, np.ndarray | Tensor):
        is_one = images.ndim != 4
        return ([images] if is_one else list(images)), is_one
    if isinstance(images, Iterable) and not isinstance(images, Image.Image | str | Path):
        return list(images), False
    return [images], True


def check_floats(picture: Tensor) -> None:
    """Refuse float pixels outside [0, 1]; waits for the tensor's device.

    Raises:
        UsageError: Some are, or are NaN.
    """
    low, high = (float(value) for value in picture.detach().aminmax())
    # Resizing with a bicubic kernel leaves the range by a rounding error.
    if low >= -1e-4 and high <= 1.0 + 1e-4:
        return

    advice = FLOATS
    if low >= 0.0 and 1.0 < high <= 255.0:
        advice += "; divide by 255, or give uint8"
    raise UsageError(f"a float image of values from {low:.4g} to {high:.4g}: {advice}")


def _of_pil(image: Image.Image) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_GREY_MODES:
        deep_HW = np.asarray(image).astype(np.float32) / MAX_DEEP_GREY
        return _checked(torch.from_numpy(deep_HW)[None])

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    elif image.mode in EIGHT_BIT_MODES:
        image = image.convert("RGB")
    else:
        raise UsageError(
            f"a PIL image of mode {image.mode} does not say which value is white: convert it to "
            "RGB or L, or give floats from 0 to 1"
        )
    return _checked(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def _of_array(array_HWC: Any) -> Tensor:
    shape = tuple(array_HWC.shape)
    if array_HWC.ndim == 3 and shape[-1] in CHANNELS:
        array_HWC = array_HWC.transpose(2, 0, 1)
    elif array_HWC.ndim == 2:
        array_HWC = array_HWC[None]
    else:
        raise UsageError(
            f"a numpy photo is H x W, H x W x 1 or H x W x 3, not {_by(shape)}{_hint(shape, 0)}"
        )
    if array_HWC.dtype.kind not in "fui":
        raise UsageError(_wrong_numbers(str(array_HWC.dtype)))

    # torch takes arrays in this machine's byte order alone, and no negative strides.
    native = array_HWC.astype(array_HWC.dtype.newbyteorder("="))
    return _checked(_not_cast(torch.from_numpy(np.ascontiguousarray(native))))


def _of_tensor(picture_CHW: Tensor) -> Tensor:
    shape = tuple(picture_CHW.shape)
    if picture_CHW.ndim == 2:
        picture_CHW = picture_CHW[None]
    elif picture_CHW.ndim != 3 or shape[0] not in CHANNELS:
        raise UsageError(
            f"a photo as a tensor is H x W, 1 x H x W or 3 x H x W, not {_by(shape)}"
            f"{_hint(shape, -1)}"
        )
    return _checked(_not_cast(picture_CHW))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _hint(shape: tuple[int, ...], channel_axis: int) -> str:
    """Return advice on a shape of three axes whose channels are elsewhere, or are four."""
    if len(shape) != 3:
        return ""
    if shape[channel_axis] in CHANNELS:
        axes = "transpose(1, 2, 0)" if channel_axis == 0 else "permute(2, 0, 1)"
        return f": its channels are on the wrong axis, use .{axes}"
    if 4 in (shape[0], shape[-1]):
        return ": lay its transparency on a background, or give a PIL image of mode RGBA"
    return ""


def _wrong_numbers(dtype: str) -> str:
    advice = "divide by the largest possible value, to floats from 0 to 1"
    return f"an image of {dtype} does not say which value is white: give uint8, or {advice}"


def _not_cast(picture_CHW: Tensor) -> Tensor:
    """Refuse bytes of 0 and 1 only; a file that dark would be its author's."""
    if picture_CHW.dtype == torch.uint8 and picture_CHW.numel() and int(picture_CHW.max()) == 1:
        raise UsageError(
            "a uint8 image of zeros and ones only: a mask, or floats from 0 to 1 that were cast; "
            "multiply by 255 before casting, or give the floats"
        )
    return picture_CHW


def _checked(picture_CHW: Tensor) -> Tensor:
    """Check size and numbers; return three channels."""
    if 0 in picture_CHW.shape:
        raise UsageError(f"an image of {_by(tuple(picture_CHW.shape))} has no pixels")

    if picture_CHW.is_floating_point():
        check_floats(picture_CHW)
        picture_CHW = picture_CHW.float().clamp(0.0, 1.0)
    elif picture_CHW.dtype != torch.uint8:
        raise UsageError(_wrong_numbers(str(picture_CHW.dtype).removeprefix("torch.")))
    return picture_CHW.expand(3, -1, -1)
