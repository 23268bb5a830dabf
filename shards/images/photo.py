"""What an image file means, judged once for packing, --verify, indexing, colorize and Python.

    CMYK (Adobe's inverted kind too), YCbCr, palettes, 1-bit, 16-bit     8-bit RGB or grey
    transparency, a transparent color                                    laid on white
    EXIF orientation                                          applied to image, mask and boxes
    a profile or another statement of color that is not sRGB             converted to sRGB
    a JPEG without its end marker, or without its last bits of detail    completed
    text of any size in a PNG                                            skipped
    holes and strange markers in a JPEG, cut-off files                   PictureError
    animated, multi-page, 32-bit, floating point, Lab, HDR               PictureError
    more than max_pixels                                                 PictureError
    HEIC and JPEG XL                            decoded with colorgan[heic], colorgan[jxl]

shards/images/color_space.py, pixels.py and jpeg_damage.py hold the rules.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from shards.errors import PictureError
from shards.extras import install_command
from shards.images import jpeg_damage
from shards.images.color_space import PNG_SIGNATURE, foreign_profile, to_srgb
from shards.images.pixels import has_transparency, is_deep_grey, to_8_bit
from shards.images.strips import is_big, replaced

ORIENTATION = int(ExifTags.Base.Orientation)
# JPEG includes MPO. No format that runs a program (EPS) or whose "image" is a preview (PSD, ICNS).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# How files of these formats are named, in lower case; colorize takes such files of a folder.
PHOTO_ENDINGS = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "mpo",
    "png",
    "webp",
    "tif",
    "tiff",
    "bmp",
    "gif",
    "ppm",
    "pgm",
    "pnm",
    "jp2",
    "avif",
    "heic",
    "heif",
    "jxl",
)
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
ADOBE_RGB_JPEG = 0  # Adobe's marker: three components that are RGB, not YCbCr

# Formats that a plug-in of Pillow decodes: package, Pillow's name, and the extra of this project.
PLUGINS = {
    "HEIC": ("pillow_heif", "HEIF", "heic"),
    "JPEG XL": ("pillow_jxl", "JXL", "jxl"),
}
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
# What users mistake for photos; the start of the file tells.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document; export it as JPEG, PNG or TIFF"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page, not the image behind it"),
    (b"<html", "an HTML page, not the image behind it"),
)
# How files of known formats begin, for those that Pillow does not know all the same.
STARTS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
)


@dataclass
class Photo:
    """An opened image file.

    Attributes:
        image: Pillow's image; its pixels are decoded by `finished`.
        content: The bytes it is decoded from.
        orientation: EXIF, 1 to 8.
        width: As stored in the file, before the orientation is applied.
        height: As stored.
        profile: What its colors have to be converted from; None for sRGB.
        changes: In words, each way in which the upright sRGB pixels differ from the stored ones.
    """

    image: Image.Image
    content: bytes
    orientation: int
    width: int
    height: int
    profile: bytes | None
    changes: list[str] = field(default_factory=list)

    @property
    def is_plain_jpeg(self) -> bool:
        """True if the file can be stored as it is: an upright 8-bit sRGB JPEG for every decoder."""
        return (
            self.image.format == "JPEG"
            and self.image.mode in ("RGB", "L")
            and not self.changes
            and self.image.info.get("adobe_transform") != ADOBE_RGB_JPEG
        )

    def finished(self, size: tuple[int, int]) -> Image.Image:
        """Decode the pixels and return them upright, 8-bit RGB or grey, in sRGB.

        Called once: a large image gives its memory up for the new one.

        Args:
            size: Width and height in pixels, upright.

        Raises:
            PictureError: The pixels have no one meaning.
        """
        # Depth and transparency before color: profiles are for opaque 8-bit pixels here.
        image = to_8_bit(self.image, self.content)
        if self.profile is not None:
            image = to_srgb(image, self.profile)
        elif image.mode == "CMYK":
            image = image.convert("RGB")

        # Pillow's TIFF reader has turned the pixels already.
        orientation = 1 if self.image.format == "TIFF" else self.orientation
        stored = size[::-1] if orientation >= 5 else size
        if image.size != stored:
            image = image.resize(stored, Image.Resampling.BICUBIC)

        if is_big(image) and orientation in TRANSPOSES:
            return _turned(image, orientation)
        return transposed(image, orientation)


def open_photo(content: bytes, max_pixels: int, file: BinaryIO | None = None) -> Photo:
    """Open the bytes of an image file and judge what they mean; call inside `decoding`.

    Args:
        content: The whole file; with `file`, what `needed_bytes` read of it.
        max_pixels: More are refused.
        file: Open file that the pixels are decoded from.

    Raises:
        PictureError: The file is damaged, has no one meaning, or has more than `max_pixels` pixels.
    """
    if not content:
        raise PictureError("empty file (0 bytes)")

    changes: list[str] = []
    if content.startswith(jpeg_damage.START_OF_IMAGE):
        # Its bytes may be completed: they are decoded, not the file's.
        content, file = _with_its_end(content, changes), None
    image, content = _opened(content, changes, file)

    width, height = image.size
    # From the header: nothing is decoded yet.
    if width * height > max_pixels:
        raise PictureError(f"more than {max_pixels} pixels: {width} x {height}")

    orientation = _orientation(image)
    if image.format == "TIFF" and orientation >= 5:  # Pillow gives the size after its turn
        width, height = height, width

    if image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False):
        raise PictureError("animated or multi-page: it holds several pictures")

    profile = foreign_profile(image, content)
    changes += _changes(image, orientation, profile)
    return Photo(image, content, orientation, width, height, profile, changes)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged or hostile file into a reason.

    Raises:
        PictureError: The file cannot be decoded.
    """
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
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        # Addresses differ from run to run, the reason must not.
        reason = re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__
        raise PictureError(f"cannot be decoded: {' '.join(reason.split())}") from error


def transposed(image: Image.Image, orientation: int) -> Image.Image:
    """Return stored pixels turned and mirrored upright, by EXIF orientation."""
    return image.transpose(TRANSPOSES[orientation]) if orientation in TRANSPOSES else image


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return what `transposed` does, in the old image's place."""
    method = TRANSPOSES[orientation]
    # Where a box of the upright image is in the stored one; each turn is undone by its inverse.
    width, height = image.size
    size = (height, width) if orientation >= 5 else (width, height)

    def strip(box: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = box
        if orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        # Sides that the turn reverses, of the stored image.
        if orientation in (2, 3, 7, 8):
            left, right = width - right, width - left
        if orientation in (3, 4, 6, 7):
            top, bottom = height - bottom, height - top
        return image.crop((left, top, right, bottom)).transpose(method)

    return replaced(image, image.mode, size, strip)


def needed_bytes(file: BinaryIO) -> bytes:
    """Return what `open_photo` needs of an open file: of a PNG all before its pixels, else all."""
    start = file.read(len(PNG_SIGNATURE))
    end = len(start)
    while start == PNG_SIGNATURE:
        head = file.read(8)
        if len(head) < 8:
            break  # no pixels: the decoder says so
        if head[4:] == b"IDAT":
            file.seek(0)
            return file.read(end)
        # Length, name and checksum are 12 bytes.
        end = file.seek(end + 12 + int.from_bytes(head[:4], "big"))

    file.seek(0)
    return file.read()


def format_name(content: bytes) -> str:
    """Return "HEIC" or "JPEG XL" for a file of that kind, else ""."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS:
        return "HEIC"
    if content.startswith(JXL_STARTS):
        return "JPEG XL"
    return ""


def _with_its_end(content: bytes, changes: list[str]) -> bytes:
    """Return a JPEG's bytes with its end marker; refuse one whose pixels are damaged."""
    examined = jpeg_damage.examine(content)
    if examined.fault:
        raise PictureError(f"damaged JPEG: {examined.fault}")
    if examined.process and not examined.is_common:
        changes.append("JPEG of a rare kind (lossless or arithmetic)")
    if examined.lacks_end:
        changes.append("JPEG without its end marker")
        return content[: examined.whole_bytes] + jpeg_damage.END_OF_IMAGE
    return content


def _opened(content: bytes, changes: list[str], file: BinaryIO | None) -> tuple[Image.Image, bytes]:
    try:
        return _identified(content, file), content
    except (UnidentifiedImageError, ValueError, SyntaxError) as error:
        # Pillow bounds the text that it reads from a PNG, and text is nothing to an image.
        if file is not None:
            file.seek(0)
            content = file.read()
        without_text = _without_text(content)
        if without_text == content:
            if isinstance(error, UnidentifiedImageError):
                _name_stranger(content)
            raise
        changes.append("PNG with oversized text")
        try:
            return _identified(without_text), without_text
        except UnidentifiedImageError:
            _name_stranger(content)
            raise


def _identified(content: bytes, file: BinaryIO | None = None) -> Image.Image:
    formats = list(FORMATS)
    name = format_name(content)
    if name:
        formats.append(_plugin_format(name))
    return Image.open(io.BytesIO(content) if file is None else file, formats=formats)


def _plugin_format(name: str) -> str:
    package, pillow_format, extra = PLUGINS[name]
    if not _load_plugin(package):
        raise PictureError(
            f"a {name} file, which needs {install_command(extra)} or a conversion to JPEG"
        )
    return pillow_format


@lru_cache
def _load_plugin(package: str) -> bool:
    try:
        module = importlib.import_module(package)
    except ImportError:
        return False
    # pillow_jxl registers itself on import.
    register = getattr(module, "register_heif_opener", None)
    if register is not None:
        register()
    return True


def _name_stranger(content: bytes) -> None:
    start = content[:256].lstrip().lower()
    for magic, name in STRANGERS:
        if start.startswith(magic.lower()):
            raise PictureError(f"not a picture of a known format: {name}")
    for pattern, name in STARTS:
        if pattern.match(content):
            raise PictureError(
                f"damaged or cut off, or a kind of {name} that is not read: it begins as a {name}"
            )


def _without_text(content: bytes) -> bytes:
    """Return a PNG without its text chunks; other content as it is."""
    if not content.startswith(PNG_SIGNATURE):
        return content

    kept = [content[:8]]
    position = 8
    while position + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, position)
        if content[position + 4 : position + 8] not in PNG_TEXT:
            # With its checksum, which stays valid.
            kept.append(content[position : position + 12 + size])
        position += 12 + size
    return b"".join(kept)


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}:
        return 1  # most files: Pillow's reader of EXIF takes some time to find nothing

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return orientation if orientation in TRANSPOSES else 1


def _changes(image: Image.Image, orientation: int, profile: bytes | None) -> list[str]:
    """Return in words what has to be done to the stored pixels."""
    tests = {
        "turned by EXIF": orientation != 1,
        "other color space": profile is not None,
        "CMYK": image.mode == "CMYK",
        "16-bit grey": is_deep_grey(image),
        "transparency on white": has_transparency(image),
        "palette": image.mode == "P" and image.format != "GIF",
    }
    return [name for name, applies in tests.items() if applies]
