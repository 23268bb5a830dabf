"""Which color space a file states for its pixels, and the way from there to sRGB.

A statement counts by its content, not by its name: a profile whose curve and primaries are sRGB's
changes nothing, whatever it is called. Where a file makes several, the first of these holds (PNG,
third edition, section 4.3):

    PNG cICP, AVIF nclx    codes of ITU-T H.273
    an ICC profile         of RGB, grey or CMYK; ignored if its kind of color is not the pixels'
    PNG sRGB               sRGB
    PNG gAMA and cHRM      a gamma within 5 % of 1/2.2 without other primaries: sRGB, as in libpng
    EXIF                   ColorSpace 2, or 65535 with interoperability R03: Adobe RGB
    none                   sRGB
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms

from shards.errors import PictureError
from shards.images import icc
from shards.images.icc import Curve, Primaries

GREY_MODES = ("L", "LA", "1", "I;16", "I;16B", "I;16L", "I")
# A conversion that moves no color by more than this many levels is none: rounding alone moves them
# by 1.
SAME_LEVELS = 2
SRGB_GAMMA = 1 / 2.2
GAMMA_TOLERANCE = 0.05
ADOBE_RGB_EXIF = 2
UNCALIBRATED_EXIF = 65535
INTEROPERABILITY_INDEX = 1
MAX_CHUNKS = 4096
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SPACE_IN_HEADER = slice(16, 20)  # of an ICC profile: b"RGB ", b"GRAY", b"CMYK"
NCLX_WITHIN = 1 << 16  # bytes: AVIF's properties come before its pixels

# Codes of ITU-T H.273: color primaries, and transfer characteristics.
PRIMARIES: dict[int, Primaries] = {
    1: icc.BT709,
    4: icc.BT470_M,
    5: icc.BT601_625,
    6: icc.BT601_525,
    7: icc.BT601_525,
    9: icc.BT2020,
    11: icc.DCI_P3,
    12: icc.DISPLAY_P3,
}
CURVES: dict[int, Curve] = {
    1: icc.bt709_curve,
    4: icc.gamma_curve(2.2),
    5: icc.gamma_curve(2.8),
    6: icc.bt709_curve,
    8: icc.gamma_curve(1.0),
    13: icc.srgb_curve,
    14: icc.bt709_curve,
    15: icc.bt709_curve,
}
HDR_CURVES = {16: "PQ", 18: "HLG"}
UNSPECIFIED = 2
SRGB_TRANSFER = 13
BT709_TRANSFERS = (1, 6, 14, 15)


def foreign_profile(image: Image.Image, content: bytes) -> bytes | None:
    """Return the profile that the pixels have to be converted from; None if they are sRGB already.

    Args:
        image: Opened, not necessarily decoded.
        content: The bytes of its file.

    Raises:
        PictureError: High dynamic range, which has no one meaning in sRGB.
    """
    is_grey = image.mode in GREY_MODES
    for profile in _stated_profiles(image, content, is_grey):
        if profile is None:
            return None  # says that it is sRGB

        kind = "grey" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB"
        # Damaged, or of another kind of color: the next statement holds.
        if _transform(profile, kind) is None:
            continue
        return None if _changes_nothing(profile, kind) else profile

    return None


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return RGB, grey or CMYK pixels as RGB or grey ones of sRGB.

    Args:
        image: Of mode RGB, L or CMYK; RGB is converted in place. What was grey may be RGB by now.
        profile: From `foreign_profile`.
    """
    if profile[SPACE_IN_HEADER] == b"GRAY":
        # 256 levels have 256 answers: a table does it in place of a transform.
        return image.convert("L").point(list(_grey_levels(profile)))

    kind = "CMYK" if image.mode == "CMYK" else "RGB"
    transform = cast(ImageCms.ImageCmsTransform, _transform(profile, kind))
    if kind == "RGB":
        # In place: a second copy of 100 megapixels would be 400 MB.
        ImageCms.applyTransform(image, transform, inPlace=True)
        return image

    return cast(Image.Image, ImageCms.applyTransform(image, transform))


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and data of a PNG's chunks before its pixels; nothing for other files."""
    if not content.startswith(PNG_SIGNATURE):
        return

    position = 8
    for _ in range(MAX_CHUNKS):
        size = int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        if len(name) < 4 or name in (b"IDAT", b"IEND"):
            return
        yield name, content[position + 8 : position + 8 + size]
        # Length, name and checksum are 12 bytes.
        position += 12 + size


def _stated_profiles(image: Image.Image, content: bytes, is_grey: bool) -> Iterator[bytes | None]:
    """Yield the file's statements, the one that holds first; None means sRGB."""
    # Statements are short; text and profiles need not be kept.
    chunks = {name: data for name, data in png_chunks(content) if len(data) <= 32}

    cicp = chunks.get(b"cICP")
    nclx = _nclx(image, content)
    if cicp is not None and len(cicp) == 4:
        yield from _profile_of_codes(cicp[0], cicp[1], is_grey)
    elif nclx is not None:
        # Video encoders write BT.709's camera curve into stills that were made from sRGB.
        transfer = SRGB_TRANSFER if nclx[1] in BT709_TRANSFERS else nclx[1]
        yield from _profile_of_codes(nclx[0], transfer, is_grey)

    embedded = image.info.get("icc_profile")
    if isinstance(embedded, bytes):
        yield embedded

    if b"sRGB" in chunks:
        yield None

    yield from _profile_of_gamma(chunks.get(b"gAMA"), chunks.get(b"cHRM"), is_grey)

    if not is_grey and _exif_says_adobe_rgb(image):
        yield icc.rgb_profile(icc.ADOBE_RGB, icc.gamma_curve(icc.ADOBE_GAMMA))


def _nclx(image: Image.Image, content: bytes) -> bytes | None:
    """Return the codes of an AVIF's color box; None if it has none."""
    if image.format not in ("AVIF", "HEIF"):
        return None
    # Pillow does not hand the codes on, so the box is looked for.
    place = content.find(b"colrnclx", 0, NCLX_WITHIN)
    codes = content[place + 8 : place + 12]
    if place < 0 or len(codes) < 4:
        return None
    return bytes((codes[1], codes[3]))


def _profile_of_codes(primaries: int, transfer: int, is_grey: bool) -> Iterator[bytes | None]:
    if transfer in HDR_CURVES:
        raise PictureError(
            f"high dynamic range ({HDR_CURVES[transfer]}), which has no one meaning in sRGB"
        )

    space = PRIMARIES.get(primaries if primaries != UNSPECIFIED else 1)
    curve = CURVES.get(transfer if transfer != UNSPECIFIED else SRGB_TRANSFER)
    if space is not None and curve is not None:
        yield (icc.grey_profile(curve) if is_grey else icc.rgb_profile(space, curve))


def _profile_of_gamma(
    gamma_chunk: bytes | None, primaries_chunk: bytes | None, is_grey: bool
) -> Iterator[bytes | None]:
    gamma = _fixed_point(gamma_chunk, 1)
    points = _fixed_point(primaries_chunk, 8)
    if gamma is None and points is None:
        return

    curve: Curve = icc.srgb_curve
    if gamma is not None and not 0.01 <= gamma[0] <= 100.0:
        return  # libpng ignores such values too
    if gamma is not None and abs(gamma[0] / SRGB_GAMMA - 1) > GAMMA_TOLERANCE:
        curve = icc.gamma_curve(1 / gamma[0])

    primaries = icc.BT709
    if points is not None:
        white, red, green, blue = ((points[2 * n], points[2 * n + 1]) for n in range(4))
        primaries = Primaries(white, red, green, blue)

    try:
        yield (icc.grey_profile(curve) if is_grey else icc.rgb_profile(primaries, curve))
    except ValueError:
        return  # impossible primaries state nothing


def _fixed_point(chunk: bytes | None, count: int) -> list[float] | None:
    if chunk is None or len(chunk) != 4 * count:
        return None
    return [int.from_bytes(chunk[4 * n : 4 * n + 4], "big") / 100_000 for n in range(count)]


def _exif_says_adobe_rgb(image: Image.Image) -> bool:
    if image.format == "JPEG" and "exif" not in image.info:
        return False  # most files: Pillow's reader of EXIF takes some time to find nothing

    try:
        exif = image.getexif()
        tags: dict[int, Any] = exif.get_ifd(ExifTags.IFD.Exif)
        space = tags.get(ExifTags.Base.ColorSpace)
        if space == ADOBE_RGB_EXIF:
            return True
        index = exif.get_ifd(ExifTags.IFD.Interop).get(INTEROPERABILITY_INDEX)
    except Exception:  # damaged EXIF says nothing about the pixels
        return False
    return space == UNCALIBRATED_EXIF and str(index).strip("\0 ") == "R03"


@lru_cache(maxsize=32)
def _transform(
    profile: bytes, kind: str, intent: ImageCms.Intent = ImageCms.Intent.PERCEPTUAL
) -> ImageCms.ImageCmsTransform | None:
    """Return littlecms' transform of a profile to sRGB; None if damaged or of another kind."""
    source_mode = {"grey": "L", "RGB": "RGB", "CMYK": "CMYK"}[kind]
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, source_mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=32)
def _changes_nothing(profile: bytes, kind: str) -> bool:
    """Return whether a profile leaves every color of a grid where it is."""
    # There is no CMYK that sRGB already is.
    if kind == "CMYK":
        return False
    if kind == "grey":
        levels = np.array(_grey_levels(profile), np.int64)
        return bool(np.abs(levels - np.arange(256)).max() <= SAME_LEVELS)

    # Relative colorimetric: a perceptual table may compress tones although the space is sRGB.
    transform = _transform(profile, kind, ImageCms.Intent.RELATIVE_COLORIMETRIC)
    if transform is None:
        return False

    # 16 steps a side: 4,096 colors tell as much as all 16 million.
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid_RGB = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(grid_RGB), transform)
    moved = np.abs(np.asarray(converted, np.int64) - grid_RGB)
    return bool(moved.max() <= SAME_LEVELS)


@lru_cache(maxsize=32)
def _grey_levels(profile: bytes) -> tuple[int, ...]:
    """Return the sRGB level of each of the 256 levels of a grey profile."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    transform = _transform(profile, "grey")
    if transform is None:
        return tuple(range(256))
    converted = cast(Image.Image, ImageCms.applyTransform(ramp, transform))
    return tuple(np.asarray(converted)[0, :, 1].tolist())
