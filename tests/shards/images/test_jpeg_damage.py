"""shards/images/jpeg_damage.py: silent damage is found, and whole files are not suspected."""

import io

import numpy as np
import pytest
from PIL import Image

from shards.errors import PictureError
from shards.images.conversion import convert_picture, decode_upright
from shards.images.headers import is_loadable
from shards.images.jpeg_damage import examine
from shards.images.policy import Encoding, parse_image_policy

ORIGINAL = Encoding(parse_image_policy("original"))
BASELINE = 0xC0
PROGRESSIVE = 0xC2
LOSSLESS = 0xC3
KINDS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 3},
    "restart rows": {"restart_marker_rows": 1},
}


def noise(width: int = 83, height: int = 61, channels: int = 3) -> Image.Image:
    """Draw smooth noise: every kind of code occurs, and no side is a multiple of a block's."""
    random = np.random.default_rng(5)
    small = random.integers(
        0,
        256,
        (16, 16, channels),
        np.uint8,
    )
    image = Image.fromarray(small if channels == 3 else small[..., 0])

    return image.resize(
        (width, height),
        Image.Resampling.BICUBIC,
    )


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def scan_start(content: bytes) -> int:
    place = content.index(b"\xff\xda")
    return place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_files_are_whole_and_a_missing_end_is_made_good(kind: str, channels: int) -> None:
    image = noise(channels=channels)
    content = jpeg(image, **KINDS[kind])
    assert examine(content).fault == ""
    assert not examine(content).lacks_end

    without_end = content[:-2]
    assert examine(without_end).lacks_end
    assert np.array_equal(
        decode_upright(without_end, 10**6),
        decode_upright(content, 10**6),
    )
    stored = convert_picture(without_end, ORIGINAL)
    assert stored.changes == ("JPEG without its end marker",)
    assert is_loadable(stored.jpeg)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused(kind: str) -> None:
    content = jpeg(noise(), **KINDS[kind])
    for share in (0.5, 0.9):
        cut = content[: int(len(content) * share)]
        assert not examine(cut).lacks_end
        with pytest.raises(PictureError, match="cannot be decoded"):
            convert_picture(cut, ORIGINAL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0.1, 0.5, 0.8])
def test_a_hole_of_zeros_is_refused(kind: str, start: float) -> None:
    content = bytearray(jpeg(noise(), **KINDS[kind]))
    first = scan_start(content) + int((len(content) - scan_start(content)) * start)
    content[first : first + 300] = bytes(300)
    with pytest.raises(PictureError, match="damaged JPEG"):
        convert_picture(bytes(content), ORIGINAL)


def test_flat_images_may_hold_runs_of_zeros() -> None:
    for color in ("white", "black", (12, 200, 99)):
        content = jpeg(
            Image.new("RGB", (800, 600), color),
            optimize=True,
        )
        assert examine(content).fault == ""
        assert convert_picture(content, ORIGINAL).jpeg == content


def test_a_strange_marker_within_the_pixels_is_refused() -> None:
    for options in ({}, {"progressive": True}):
        content = bytearray(jpeg(noise(), **options))
        place = (scan_start(bytes(content)) + len(content)) // 2
        content[place : place + 2] = b"\xff\x66"
        with pytest.raises(PictureError, match=r"damaged JPEG|cannot be decoded"):
            convert_picture(bytes(content), ORIGINAL)


def test_waste_behind_the_last_block_is_no_damage() -> None:
    content = jpeg(noise())
    assert examine(content + b"waste \xff\x66").fault == ""
    assert examine(content[:-2] + b"\xff\x66\xff\xd9").lacks_end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_progressive_file_may_lack_its_last_bits_and_no_more(kind: str, channels: int) -> None:
    """Cut anywhere: what is taken is near the whole image, and a longer file is taken too."""
    content = jpeg(
        noise(53, 41, channels=channels),
        progressive=True,
        **KINDS[kind],
    )
    assert not examine(content).lacks_end
    assert examine(content).process == PROGRESSIVE
    assert examine(content).is_common
    whole = decode_upright(content, 10**6).astype(int)

    verdicts = [examine(content[:size]).lacks_end for size in range(len(content))]
    first = verdicts.index(True)
    assert first > len(content) / 2
    assert all(verdicts[first : len(content) - 1])
    for size in (first, (first + len(content)) // 2, len(content) - 2):
        image = decode_upright(content[:size], 10**6)
        # Saturated noise loses more than a photo: 28 dB against 35.
        assert np.square(image - whole).mean() < 255**2 / 10**2.6
    assert np.array_equal(
        decode_upright(content[:-2], 10**6),
        whole,
    )

    stored = convert_picture(
        content[:first],
        ORIGINAL,
    )
    assert stored.changes == ("JPEG without its end marker",)
    assert is_loadable(stored.jpeg)
    with pytest.raises(PictureError, match="cannot be decoded"):
        convert_picture(
            content[: first - 1],
            ORIGINAL,
        )


def test_a_hole_in_the_first_scans_of_a_progressive_file_is_refused() -> None:
    content = jpeg(noise(400, 300), progressive=True)
    first = scan_start(content) + 200
    holed = content[:first] + bytes(300) + content[first + 300 :]
    with pytest.raises(PictureError, match="damaged JPEG"):
        convert_picture(holed, ORIGINAL)


def test_a_file_that_ends_behind_the_first_of_its_components_is_refused() -> None:
    """A scan per component: the luminance is whole, and the color was cut off."""
    content = jpeg(noise(), subsampling=0)
    ends = separate_scans(content)
    assert examine(ends + b"\xff\xd9") == examine(content)
    assert not examine(ends[: ends.rindex(b"\xff\xda")]).lacks_end
    assert examine(ends).lacks_end


def separate_scans(content: bytes) -> bytes:
    """Return a 4:4:4 JPEG of three scans, each a grey JPEG's, without its end marker."""
    with Image.open(io.BytesIO(content)) as image:
        planes = [jpeg(plane) for plane in image.convert("YCbCr").split()]
    frame = content.index(b"\xff\xc0")
    tables = planes[0][2 : planes[0].index(b"\xff\xc0")]
    codes = planes[0][planes[0].index(b"\xff\xc4") : planes[0].index(b"\xff\xda")]
    header = bytearray(content[frame : frame + 19])
    header[10 + 2 :: 3] = bytes(
        3
    )  # one quantization table, and one pair of Huffman tables, for all
    scans = [
        b"\xff\xda\x00\x08\x01" + bytes([number, 0, 0, 63, 0]) + plane[scan_start(plane) : -2]
        for number, plane in enumerate(planes, 1)
    ]

    return b"\xff\xd8" + tables + bytes(header) + codes + b"".join(scans)


# An 8 x 8 grey image in lossless Huffman coding (ITU-T T.81, annex H): every difference is 0, whose
# code is one 0 bit.
def lossless_jpeg() -> bytes:
    frame = b"\xff\xc3\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"
    codes = b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + frame + codes + scan + bytes(8) + b"\xff\xd9"


def test_a_lossless_jpeg_is_stored_as_one_that_every_decoder_reads() -> None:
    content = lossless_jpeg()
    assert examine(content).process == LOSSLESS
    assert not examine(content).is_common
    stored = convert_picture(content, ORIGINAL)
    assert stored.jpeg != content
    assert is_loadable(stored.jpeg)
    assert np.asarray(Image.open(io.BytesIO(stored.jpeg))).shape == (8, 8)
