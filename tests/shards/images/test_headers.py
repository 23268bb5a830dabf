"""Headers of JPEG, PNG and WebP: read without decoding, refused where they are broken."""

import io
from typing import Any

import numpy as np
import pytest
from helpers.tiny_set import cut_in_the_pixels, jpeg, picture, png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.images.headers import (
    Header,
    image_header,
    jpeg_has_end,
    jpeg_header,
    mask_header,
    png_header,
    webp_header,
)


def test_headers() -> None:
    assert jpeg_header(jpeg(picture(1, 40, 56))) == Header(56, 40, 8, 3)
    assert jpeg_header(jpeg(picture(1, 8, 9)[..., 0])) == Header(9, 8, 8, 1)
    assert jpeg_header(cut_in_the_pixels(jpeg(picture(1, 8, 9)))) == Header(9, 8, 8, 3)
    assert mask_header(png(np.zeros((5, 6), np.uint8))) == Header(6, 5, 8, 1, "png")


def test_broken_headers_are_none() -> None:
    whole = jpeg(picture(1, 40, 56))
    scan = whole.index(b"\xff\xda")
    for end in range(0, scan, 7):
        assert jpeg_header(whole[:end]) is None
        assert jpeg_header(whole[:end] + b"x" * 1000) is None
    frame = whole.index(b"\xff\xc0")

    assert jpeg_header(whole[:frame] + b"\xff\xc3" + whole[frame + 2 :]) is None  # lossless
    assert (
        jpeg_header(whole[:frame] + whole[frame : frame + 19] + whole[frame:]) is None
    )  # two frames
    assert jpeg_header(b"\xff\xd8" + b"\xff\xe1\x00\x02Exif\0\0" + whole[2:]) is None
    assert jpeg_header(b"\xff\xd8" + b"\xff" * 5 + whole[2:]) == Header(
        56, 40, 8, 3
    )  # fill bytes are legal

    mask = png(np.zeros((5, 6), np.uint8))
    for end in range(len(mask) - 12):
        assert mask_header(mask[:end]) is None

    assert mask_header(mask[:33] + b"\xff\xff\xff\xffIDAT" + mask[41:]) is None
    assert mask_header(mask[:33] + b"\0\0\0\0eXIf\0\0\0\0" + mask[33:]) is None


def test_a_jpeg_that_is_cut_off_has_no_end() -> None:
    whole = jpeg(picture(1, 40, 56))
    scan = whole.index(b"\xff\xda")
    assert jpeg_has_end(whole)
    assert jpeg_has_end(whole + bytes(100))
    for end in range(scan + 20, len(whole) - 1, 7):
        assert not jpeg_has_end(whole[:end])

    # The thumbnail's end marker is not the image's.
    thumbnail = jpeg(picture(2, 8, 8))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert jpeg_has_end(with_thumbnail + b"more")
    assert not jpeg_has_end(with_thumbnail[:-2] + b"more")


def saved(index: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(index, 40, 56)).save(
        stream,
        **options,
    )
    return stream.getvalue()


EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0"
WHOLE = {
    "jpeg": saved(1, format="JPEG"),
    "png": saved(1, format="PNG"),
    "png with exif": saved(1, format="PNG", exif=EXIF),
    "webp": saved(1, format="WEBP", quality=80),
    "webp with exif": saved(1, format="WEBP", quality=80, exif=EXIF),
    "lossless": saved(1, format="WEBP", lossless=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_headers_of_every_kind(name: str) -> None:
    kind = {"png with exif": "png", "webp with exif": "webp", "lossless": "webp"}.get(
        name,
        name,
    )
    assert image_header(WHOLE[name]) == Header(56, 40, 8, 3, kind)


@pytest.mark.parametrize(
    "name",
    ["png", "png with exif", "webp", "webp with exif", "lossless"],
)
def test_a_cut_off_png_or_webp_has_no_header(name: str) -> None:
    whole = WHOLE[name]
    for end in range(0, len(whole) - 12, 3):
        assert image_header(whole[:end]) is None


def test_bits_and_channels() -> None:
    image = Image.fromarray(picture(1, 4, 5))
    modes = {
        "RGB": (8, 3),
        "L": (8, 1),
        "P": (8, 3),
        "1": (1, 1),
        "RGBA": (8, 4),
        "LA": (8, 2),
    }
    for mode, (bits, channels) in modes.items():
        stream = io.BytesIO()
        image.convert(mode).save(stream, "PNG")
        assert image_header(stream.getvalue()) == Header(5, 4, bits, channels, "png")

    with_alpha = saved(1, format="WEBP")
    stream = io.BytesIO()
    transparent = image.convert("RGBA")
    transparent.putalpha(100)
    transparent.save(stream, "WEBP", lossless=True)
    assert image_header(with_alpha) == Header(56, 40, 8, 3, "webp")
    header = image_header(stream.getvalue())
    assert header is not None and header.channels == 4


def test_an_animation_has_no_header() -> None:
    frames = [Image.fromarray(picture(index, 8, 8)) for index in range(3)]
    stream = io.BytesIO()
    frames[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
    )

    assert image_header(stream.getvalue()) is None


@settings(max_examples=500)
@given(st.data())
def test_damaged_bytes_give_a_header_or_none(data: st.DataObject) -> None:
    """Nothing raises, and sizes stay within what the formats can state."""
    image = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    edits = st.tuples(
        st.integers(0, len(image) - 1),
        st.integers(0, 255),
    )
    for position, value in data.draw(st.lists(edits, max_size=6)):
        image[position] = value
    end = data.draw(st.integers(0, len(image)))

    damaged = bytes(image[:end])
    for parse in (image_header, jpeg_header, png_header, webp_header, mask_header):
        header = parse(damaged)
        assert header is None or (header.width < 2**32 and header.height < 2**32)
    if jpeg_header(damaged) is not None:
        assert jpeg_has_end(damaged) in (True, False)


@settings(max_examples=300)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8", b"RIFF", b"\x89PNG\r\n\x1a\n"]),
)
def test_any_bytes_give_a_header_or_none(data: bytes, start: bytes) -> None:
    header = image_header(start + data)
    assert header is None or isinstance(header, Header)
