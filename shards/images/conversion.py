"""One image file of any kind -> the upright 8-bit JPEG that a shard stores; its mask likewise.

Called by shards/packing/samples.py in the packer's workers. shards/images/photo.py judges what a
file means.

Resizing is Pillow's antialiased bicubic. A JPEG that shrinks 6 times or more is decoded at a half,
a quarter or an eighth by its DCT first, so that at least 3 times the wanted size is left to resize:
on COCO photos at 64 x 64 that is 54 dB from the full decode (median; JPEG quality 95 itself costs
40 dB), and a 12-megapixel photo takes a quarter of the time.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from shards.errors import PictureError
from shards.images import chroma
from shards.images.label_frame import mask_frame
from shards.images.photo import (
    ORIENTATION,
    Photo,
    decoding,
    needed_bytes,
    open_photo,
    transposed,
)
from shards.images.pixels import clear_color, has_transparency, is_deep_grey
from shards.images.policy import SUBSAMPLINGS, Encoding, Geometry
from shards.images.strips import is_big, mapped, replaced
from shards.records import VOID

MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
DRAFT_GAP = 3
OPAQUE = 255
# How a TIFF lays out its own pixels, among the tags that tell of the photo: true of no copy.
# Size, bits, compression, strips, planes, palette, tiles, samples, JPEG, YCbCr, XMP, ICC.
TIFF_LAYOUT = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    338,
    339,
    347,
    513,
    514,
    529,
    530,
    531,
    532,
    700,
    34675,
)
MAX_EXIF_BYTES = 65_000  # of a JPEG's segment


@dataclass(frozen=True)
class StoredPicture:
    """A JPEG to store, and what was done to get it.

    Attributes:
        jpeg: The bytes.
        geometry: From the file's pixels to the stored ones.
        changes: In words, how the upright sRGB pixels differ from the file's.
        chroma: Mean chroma in Lab units (shards/images/chroma.py).
        is_off_profile: The file states another color space than sRGB.
        is_low_quality: The file is a JPEG whose chroma is coarse.
    """

    jpeg: bytes
    geometry: Geometry
    changes: tuple[str, ...] = ()
    chroma: float = 0.0
    is_off_profile: bool = False
    is_low_quality: bool = False

    @property
    def is_near_grey(self) -> bool:
        """True if the photo has next to no color."""
        return self.chroma < chroma.GREY_CHROMA


def convert_picture(content: bytes, encoding: Encoding) -> StoredPicture:
    """Turn the bytes of one image file into the JPEG to store.

    The file's own bytes are kept if nothing has to change: an upright 8-bit JPEG in sRGB of a
    common kind, whose size the policy leaves alone, and which decodes.

    Raises:
        PictureError: The file has no one meaning, cannot be decoded, or has less chroma than the
            encoding asks for; the message is the reason.
    """
    with decoding():
        photo = open_photo(content, encoding.max_pixels)
        geometry = _geometry(photo, encoding)
        size = (geometry.width, geometry.height)
        is_coarse = chroma.is_low_quality(photo.image)

        # Only where the size changes: a draft is a coarser decode.
        if size != geometry.upright:
            photo.image.draft(None, _as_stored(geometry, DRAFT_GAP))
        photo.image.load()

        # Encoding once more would cost quality for nothing.
        keeps_bytes = photo.is_plain_jpeg and size == geometry.upright
        image = photo.image if keeps_bytes else photo.finished(size)
        jpeg = content if keeps_bytes else _encoded(image, encoding)

        # Of what is stored: that is what training sees.
        amount = chroma.mean_chroma(image)
        if amount < encoding.min_chroma:
            raise PictureError(f"too little color (mean chroma {amount:.1f})")

    return StoredPicture(
        jpeg, geometry, tuple(photo.changes), amount, photo.profile is not None, is_coarse
    )


@dataclass(frozen=True)
class UprightPhoto:
    """A decoded photo at its own size, upright, in sRGB.

    Attributes:
        image: Of mode RGB, or RGBA if some pixels are not opaque; transparent ones have the color
            that the file states for them.
        exif: The file's EXIF without its orientation and color space; empty if it has none.
    """

    image: Image.Image
    exif: bytes


def decode_upright(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one image file of any kind to upright sRGB at its own size, H x W x 3.

    Raises:
        PictureError: The file has no one meaning, cannot be decoded, or has too many pixels.
    """
    return np.asarray(open_upright(content, max_pixels))


def open_upright(content: bytes, max_pixels: int) -> Image.Image:
    """Decode one image file of any kind to an upright sRGB image of mode RGB at its own size.

    Transparent pixels are laid on white.

    Raises:
        PictureError: The file has no one meaning, cannot be decoded, or has more than `max_pixels`
            pixels.
    """
    with decoding():
        photo = open_photo(content, max_pixels)
        photo.image.load()
        return _as_rgb(photo.finished(_upright_size(photo)))


def read_upright(file: BinaryIO, max_pixels: int) -> UprightPhoto:
    """Decode one image file as `open_upright` does, and keep its transparency and its EXIF.

    Beside the result no second copy of a large image is in memory, nor the bytes of a PNG; its
    transparency is for a moment.

    Raises:
        PictureError: See `open_upright`.
    """
    with decoding():
        content = needed_bytes(file)
        file.seek(0)
        photo = open_photo(content, max_pixels, file)
        photo.image.load()
        exif = _kept_exif(photo.image)
        if photo.image.mode == "La":
            # Nothing converts grey that was multiplied by its alpha to RGBA directly.
            kind, photo.image = photo.image.format, photo.image.convert("LA")
            photo.image.format = kind

        alpha = _alpha_of(photo, content)
        if alpha is not None:
            file_format = photo.image.format
            photo.image = _without_alpha(photo.image)
            photo.image.format = file_format  # decides who turns it

        upright = photo.finished(_upright_size(photo))
        if upright is not photo.image:
            photo.image.close()
        image = _as_rgb(upright)
        if alpha is not None:
            # In place, in the byte of each pixel that Pillow leaves unused in an RGB image.
            image.putalpha(alpha)
        return UprightPhoto(image, exif)


def convert_mask(mask: NDArray[np.uint8], geometry: Geometry, num_classes: int) -> bytes:
    """Turn a mask of class indices into the PNG to store: turned and resized like its image.

    Args:
        mask: H x W uint8; 0 background, 1 to num_classes, 255 void. shards/images/label_frame.py
            decides by its size whether it was made on the upright or the stored image, or on a
            resized copy of one.
        geometry: That of the image; the mask is resized by nearest neighbor.
        num_classes: Number of object classes.

    Raises:
        PictureError: A size that fits neither view of the picture, another type, or an index that
            is no class.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        shape = " x ".join(map(str, mask.shape))
        raise PictureError(f"mask is {shape} of {mask.dtype}, not height x width of uint8")

    frame = mask_frame((mask.shape[1], mask.shape[0]), geometry)

    highest = int(mask[mask != VOID].max(initial=0))
    if highest > num_classes:
        raise PictureError(f"mask holds an index above the {num_classes} classes: {highest}")

    image = Image.fromarray(mask)
    if frame.is_stored:
        image = transposed(image, geometry.orientation)
    image = image.resize((geometry.width, geometry.height), Image.Resampling.NEAREST)

    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _upright_size(photo: Photo) -> tuple[int, int]:
    size = (photo.width, photo.height)
    return size[::-1] if photo.orientation >= 5 else size


def _as_rgb(image: Image.Image) -> Image.Image:
    # Not by convert alone: it copies an RGB image too, 400 MB of 100 megapixels.
    return image if image.mode == "RGB" else image.convert("RGB")


def _alpha_of(photo: Photo, content: bytes) -> Image.Image | None:
    """Return the upright transparency; None if there is none, or no pixel uses it."""
    if not has_transparency(photo.image) or is_deep_grey(photo.image):
        return None

    clear = clear_color(photo.image, content)

    def alpha_of(strip: Image.Image) -> Image.Image:
        # On the strip: the photo keeps what its file states, for whoever lays it on white.
        if clear is not None:
            strip.info["transparency"] = clear
        return strip.convert("RGBA").getchannel("A")

    is_rgba = photo.image.mode == "RGBA"
    alpha = photo.image.getchannel("A") if is_rgba else mapped(photo.image, "L", alpha_of)
    lowest, _ = alpha.getextrema()
    if lowest == OPAQUE:
        return None
    orientation = 1 if photo.image.format == "TIFF" else photo.orientation
    return transposed(alpha, orientation)


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return an image of mode RGB with the colors that the file states for transparent pixels."""
    if not is_big(image):
        return image.convert("RGBA").convert("RGB")

    return replaced(
        image, "RGB", image.size, lambda box: image.crop(box).convert("RGBA").convert("RGB")
    )


def _kept_exif(image: Image.Image) -> bytes:
    try:
        exif = image.getexif()
        # The copy is upright; a viewer would turn it again.
        exif.pop(ORIENTATION, None)
        for tag in TIFF_LAYOUT:
            exif.pop(tag, None)
        tags = exif.get_ifd(ExifTags.IFD.Exif)
        tags.pop(int(ExifTags.Base.ColorSpace), None)
        content = exif.tobytes() if len(exif) or tags else b""
    except Exception:  # damaged EXIF is not worth keeping
        return b""
    return content if len(content) <= MAX_EXIF_BYTES else b""


def _geometry(photo: Photo, encoding: Encoding) -> Geometry:
    upright = Geometry(
        photo.width,
        photo.height,
        photo.orientation,
        0,
        0,
    )
    width, height = encoding.policy.target(*upright.upright)
    if max(width, height) > MAX_SIDE or width * height > encoding.max_pixels:
        raise PictureError(f"too large to store: {width} x {height} pixels")
    return Geometry(photo.width, photo.height, photo.orientation, width, height)


def _as_stored(geometry: Geometry, factor: int) -> tuple[int, int]:
    size = geometry.width * factor, geometry.height * factor
    return size[::-1] if geometry.orientation >= 5 else size


def _encoded(image: Image.Image, encoding: Encoding) -> bytes:
    image.info = {}  # no comment, profile or date of the source in the bytes
    subsampling = SUBSAMPLINGS[encoding.chroma_subsampling]

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.jpeg_quality, subsampling=subsampling)
    return buffer.getvalue()
