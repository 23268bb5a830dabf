"""One picture of any kind -> the upright 8-bit JPEG that a shard stores; mask and boxes go the same way.

Called by shards/packing/samples.py in the packer's workers. What a picture means is decided here:

    CMYK (Adobe's inverted kind too), YCbCr, palettes, 1-bit, 16-bit     8-bit RGB or grey
    transparency                                                        flattened on white
    EXIF orientation                                                    applied to picture, mask and boxes
    an embedded RGB or CMYK profile that is not sRGB                     colours converted to sRGB
    animated, multi-page, 32-bit, floating point, Lab, above max_pixels  PictureError

Resizing is PIL's antialiased bicubic. A JPEG that shrinks 6 times or more is decoded at a half, a quarter
or an eighth by its DCT first, so that at least 3 times the wanted size is left to resize: on COCO photos at
64 x 64 that is 54 dB from the full decode (median; JPEG quality 95 itself costs 40 dB), and a 12-megapixel
photo takes a quarter of the time.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from shards.errors import PictureError
from shards.images.label_frame import mask_frame
from shards.images.policy import SUBSAMPLINGS, Encoding, Geometry, ImagePolicy
from shards.records import VOID

MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
DRAFT_GAP = 3
ORIENTATION = int(ExifTags.Base.Orientation)
# JPEG stands for MPO too. No format that runs a program (EPS) or whose "picture" is a preview (PSD, ICNS).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class StoredPicture:
    """A JPEG and how it came about."""

    jpeg: bytes
    geometry: Geometry


def convert_picture(content: bytes, encoding: Encoding) -> StoredPicture:
    """Turn the bytes of one picture file into the JPEG to store.

    The file's own bytes are kept where nothing has to change: an upright RGB or grey JPEG without a foreign
    profile, whose size the policy leaves alone, and which decodes.

    Raises:
        PictureError: The picture has no one meaning or cannot be decoded; the message is the reason.
    """
    with _decoding():
        image, geometry = _opened(content, encoding)
        foreign = _foreign_profile(image)
        resized = (geometry.width, geometry.height) != geometry.upright
        plain = image.format == "JPEG" and image.mode in ("RGB", "L") and geometry.orientation == 1
        plain = plain and foreign is None and image.info.get("adobe_transform") != 0
        if resized:
            image.draft(None, _as_stored(geometry, DRAFT_GAP))
        image.load()
        if plain and not resized:
            return StoredPicture(content, geometry)
        image = _finish(image, geometry, foreign)
        return StoredPicture(_encode_jpeg(image, encoding), geometry)


def decode_upright(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one picture file of any kind to upright sRGB at its own size, H x W x 3.

    Raises:
        PictureError: The picture has no one meaning, cannot be decoded, or has more than `max_pixels` pixels.
    """
    with _decoding():
        image, geometry = _opened(content, Encoding(ImagePolicy("original"), max_pixels=max_pixels))
        foreign = _foreign_profile(image)
        image.load()
        return np.asarray(_finish(image, geometry, foreign).convert("RGB"))


def convert_mask(mask: NDArray[np.uint8], geometry: Geometry, num_classes: int) -> bytes:
    """Turn a mask of class indices into the PNG to store: turned and resized like its picture, by nearest.

    Args:
        mask: H x W uint8; 0 background, 1 to num_classes, 255 void. shards/images/label_frame.py decides by its
            size whether it was made on the upright or the stored image, or on a resized copy of one.
        geometry: That of the picture.
        num_classes: Number of object classes.

    Raises:
        PictureError: A size that fits neither view of the picture, another type, or an index that is no class.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        shape = " x ".join(map(str, mask.shape))
        raise PictureError(f"mask is {shape} of {mask.dtype}, not height x width of uint8")
    frame = mask_frame((mask.shape[1], mask.shape[0]), geometry)
    highest = int(mask[mask != VOID].max(initial=0))
    if highest > num_classes:
        raise PictureError(f"mask holds index {highest}, above the {num_classes} classes")
    image = Image.fromarray(mask)
    if frame.is_stored:
        image = _transpose(image, geometry.orientation)
    image = image.resize((geometry.width, geometry.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _opened(content: bytes, encoding: Encoding) -> tuple[Image.Image, Geometry]:
    if not content:
        raise PictureError("empty file (0 bytes)")
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    geometry = _plan(image, encoding)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise PictureError("animated or multi-page: it holds several pictures")
    return image, geometry


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged or hostile file into a reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("more pixels than are allowed (decompression bomb)") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"not a picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # PIL's decoders raise nearly every type there is on damaged files
        reason = (
            re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__
        )  # the same in each run
        raise PictureError(f"cannot be decoded: {' '.join(reason.split())}") from error


def _plan(image: Image.Image, encoding: Encoding) -> Geometry:
    width, height = image.size
    if width * height > encoding.max_pixels:
        raise PictureError(f"{width} x {height} is more than {encoding.max_pixels} pixels")
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing of the pixels
        orientation = 1
    orientation = orientation if orientation in TRANSPOSES else 1
    if image.format == "TIFF" and orientation >= 5:  # PIL gives the size after its turn
        width, height = height, width
    upright = Geometry(width, height, orientation, 0, 0)
    target = encoding.policy.target(*upright.upright)
    if max(target) > MAX_SIDE or target[0] * target[1] > encoding.max_pixels:
        raise PictureError(f"too large to store: {target[0]} x {target[1]} pixels")
    return Geometry(width, height, orientation, *target)


def _as_stored(geometry: Geometry, factor: int = 1) -> tuple[int, int]:
    size = geometry.width * factor, geometry.height * factor
    return size[::-1] if geometry.orientation >= 5 else size


def _finish(image: Image.Image, geometry: Geometry, profile: bytes | None) -> Image.Image:
    """Decoded pixels of any mode -> upright RGB or grey of the geometry's size."""
    orientation = (
        1 if image.format == "TIFF" else geometry.orientation
    )  # PIL's TIFF reader turns by itself
    image = _to_rgb_or_grey(image, profile)
    turned = orientation == geometry.orientation
    size = _as_stored(geometry) if turned else (geometry.width, geometry.height)
    image = image.resize(size, Image.Resampling.BICUBIC)
    return _transpose(image, orientation)


def _to_rgb_or_grey(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # PIL takes every CMYK JPEG for Adobe's inverted kind; without Adobe's marker it is the plain one.
        image = Image.merge(
            "CMYK", [channel.point(lambda value: 255 - value) for channel in image.split()]
        )
    if profile is not None:
        return _to_srgb(image, profile)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("RGB", "L"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr", "RGBX", "HSV"):
        return image.convert("RGB")
    raise PictureError(f"pixels of mode {image.mode} have no one meaning as 8-bit RGB")


def _transpose(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TRANSPOSES[orientation]) if orientation in TRANSPOSES else image


def _encode_jpeg(image: Image.Image, encoding: Encoding) -> bytes:
    image.info = {}  # no comment, profile or date of the source in the bytes
    buffer = io.BytesIO()
    subsampling = SUBSAMPLINGS[encoding.chroma_subsampling]
    image.save(buffer, "JPEG", quality=encoding.jpeg_quality, subsampling=subsampling)
    return buffer.getvalue()


def _foreign_profile(image: Image.Image) -> bytes | None:
    """The picture's colour profile, where it is one that changes its colours and can be applied."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "RGBA", "P", "CMYK"):
        return None
    return profile if _transform(profile, image.mode == "CMYK") is not None else None


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    transform = _transform(profile, image.mode == "CMYK")
    image = image if image.mode == "CMYK" else _to_rgb_or_grey(image, None)
    converted = ImageCms.applyTransform(image, cast(ImageCms.ImageCmsTransform, transform))
    return cast(Image.Image, converted)


@lru_cache(maxsize=32)
def _transform(profile: bytes, is_cmyk: bool) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile to sRGB; None where it is sRGB, is damaged, or is of another kind of colour."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, "CMYK" if is_cmyk else "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
