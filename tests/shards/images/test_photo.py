"""shards/images/photo.py: color, depth and transparency, against pixels known before."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from shards.errors import PictureError
from shards.images import icc
from shards.images.conversion import convert_picture, decode_upright, read_upright
from shards.images.icc import Primaries
from shards.images.policy import Encoding, parse_image_policy

ORIGINAL = Encoding(parse_image_policy("original"))
MAX_PIXELS = 10**6
Pixels = NDArray[np.uint8]


def photo(width: int = 64, height: int = 48) -> Pixels:
    """Draw smooth sRGB colors of every hue."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack(
        [x, y, 1 - 0.5 * (x + y)],
        -1,
    )
    return (30 + 200 * waves).round().astype(np.uint8)


def ramp(width: int = 64, height: int = 48) -> NDArray[np.float64]:
    """Draw grey samples in [0, 1]."""
    return np.linspace(
        0.02,
        0.98,
        width * height,
    ).reshape(
        height,
        width,
    )


def light_of(srgb_HW3: Pixels) -> NDArray[np.float64]:
    samples = srgb_HW3 / 255
    return np.where(
        samples <= 0.04045,
        samples / 12.92,
        ((samples + 0.055) / 1.055) ** 2.4,
    )


def srgb_light(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(
        samples <= 0.04045,
        samples / 12.92,
        ((samples + 0.055) / 1.055) ** 2.4,
    )


def levels(values: NDArray[np.float64]) -> Pixels:
    return (255 * values.clip(0, 1)).round().astype(np.uint8)


def in_space(srgb_HW3: Pixels, primaries: Primaries, gamma: float) -> Pixels:
    """Return the same colors as samples of another space with the white of sRGB."""
    from_srgb = np.linalg.inv(primaries.to_pcs()) @ icc.BT709.to_pcs()
    light = np.clip(
        light_of(srgb_HW3) @ from_srgb.T,
        0,
        1,
    )
    return levels(light ** (1 / gamma))


def encoded(pixels: Pixels, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png_with(pixels: Pixels, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with more chunks behind its header."""
    content = encoded(pixels)
    more = b""
    for name, data in chunks:
        checksum = zlib.crc32(name + data)
        more += struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
    return content[:33] + more + content[33:]


def gamma_chunk(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(100_000 * gamma))


def primaries_chunk(primaries: Primaries) -> tuple[bytes, bytes]:
    points = (
        primaries.white,
        primaries.red,
        primaries.green,
        primaries.blue,
    )
    numbers = [round(100_000 * value) for point in points for value in point]

    return b"cHRM", struct.pack(">8I", *numbers)


def codes_chunk(primaries: int, transfer: int) -> tuple[bytes, bytes]:
    return b"cICP", bytes((primaries, transfer, 0, 1))


def named(profile: bytes, name: bytes) -> bytes:
    """Return the profile under another description of the same length."""
    assert len(name) == len(b"colorgan")
    return profile.replace(b"colorgan", name)


def adobe_exif(index: str | None = None) -> Image.Exif:
    tags = Image.Exif()
    if index is None:
        tags[0x8769] = {0xA001: 2}
    else:
        tags[0x8769] = {0xA001: 65535, 0xA005: {1: index}}
    return tags


LINEAR = icc.rgb_profile(
    icc.BT709,
    icc.gamma_curve(1.0),
)
SRGB = icc.rgb_profile(icc.BT709, icc.srgb_curve)
ADOBE = in_space(photo(), icc.ADOBE_RGB, icc.ADOBE_GAMMA)
P3 = in_space(photo(), icc.DISPLAY_P3, 2.2)

COLORS: dict[str, Callable[[], bytes]] = {
    "a linear profile named sRGB": lambda: encoded(
        levels(light_of(photo())), icc_profile=named(LINEAR, b"sRGB lin")
    ),
    "sRGB under another name": lambda: encoded(
        photo(),
        icc_profile=named(SRGB, b"MyScreen"),
    ),
    "Adobe RGB by profile": lambda: encoded(
        ADOBE,
        icc_profile=icc.rgb_profile(
            icc.ADOBE_RGB,
            icc.gamma_curve(icc.ADOBE_GAMMA),
        ),
    ),
    "Adobe RGB by EXIF": lambda: encoded(ADOBE, exif=adobe_exif()),
    "Adobe RGB by interoperability": lambda: encoded(ADOBE, exif=adobe_exif("R03")),
    "PNG gAMA": lambda: png_with(
        levels(light_of(photo())),
        gamma_chunk(1.0),
    ),
    "PNG gAMA and cHRM": lambda: png_with(
        ADOBE, gamma_chunk(1 / icc.ADOBE_GAMMA), primaries_chunk(icc.ADOBE_RGB)
    ),
    "PNG gAMA of sRGB": lambda: png_with(photo(), gamma_chunk(0.45455)),
    "PNG sRGB over gAMA": lambda: png_with(
        photo(),
        (b"sRGB", b"\0"),
        gamma_chunk(1.0),
    ),
    "PNG cICP": lambda: png_with(P3, codes_chunk(12, 4)),
    "PNG cICP over a profile": lambda: png_with(
        P3,
        codes_chunk(12, 4),
        (
            b"iCCP",
            b"x\0\0" + zlib.compress(LINEAR),
        ),
    ),
    "PNG cICP of sRGB": lambda: png_with(photo(), codes_chunk(1, 13)),
    "impossible primaries": lambda: png_with(
        photo(),
        (b"cHRM", bytes(32)),
    ),
    "a damaged profile": lambda: encoded(photo(), icc_profile=b"no profile"),
    "a grey profile on colors": lambda: encoded(
        photo(), icc_profile=icc.grey_profile(icc.gamma_curve(1.0))
    ),
}


def difference(ours: Pixels, expected: Pixels) -> float:
    """Return the mean CIEDE2000."""
    assert ours.shape == expected.shape
    return float(
        deltaE_ciede2000(
            rgb2lab(ours),
            rgb2lab(expected),
        ).mean()
    )


@pytest.mark.parametrize("kind", COLORS)
def test_each_statement_of_color_gives_the_same_pixels(kind: str) -> None:
    content = COLORS[kind]()
    assert (
        difference(
            decode_upright(content, MAX_PIXELS),
            photo(),
        )
        < 1.0
    )

    stored = convert_picture(content, ORIGINAL)
    jpeg = np.asarray(Image.open(io.BytesIO(stored.jpeg)))
    assert difference(jpeg, photo()) < 2.0
    is_converted = (
        difference(
            np.asarray(Image.open(io.BytesIO(content)))[..., :3],
            photo(),
        )
        > 0.5
    )
    assert stored.is_off_profile == is_converted


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_refused_by_name(transfer: int) -> None:
    with pytest.raises(PictureError, match="high dynamic range"):
        decode_upright(
            png_with(photo(), codes_chunk(9, transfer)),
            MAX_PIXELS,
        )


def test_srgb_by_content_keeps_the_bytes_of_a_jpeg() -> None:
    content = encoded(
        photo(),
        "JPEG",
        quality=90,
        icc_profile=named(SRGB, b"MyScreen"),
    )
    assert convert_picture(content, ORIGINAL).jpeg == content


# Dot gain 20 %: a print of 50 % dots is seen as 70 %. One curve of that kind stands for all of them
# here.
def dot_gain(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    ink = 1 - samples
    return 1 - (ink + 0.8 * ink * (1 - ink))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_grey_profile_changes_the_lightness(kind: str) -> None:
    profile = icc.grey_profile(dot_gain)
    samples = levels(ramp())
    light = dot_gain(samples / 255)
    seen = levels(
        np.where(
            light <= 0.0031308,
            12.92 * light,
            1.055 * light ** (1 / 2.4) - 0.055,
        )
    )
    expected = np.repeat(seen[..., None], 3, 2)

    ours = decode_upright(
        encoded(samples, kind, icc_profile=profile),
        MAX_PIXELS,
    )
    assert difference(ours, expected) < 0.7
    assert (
        difference(
            np.repeat(samples[..., None], 3, 2),
            expected,
        )
        > 4.0
    )


# ---- 16 bits ----

DEEP = (65535 * ramp()).round().astype(np.uint16)
SHALLOW = np.repeat(
    levels(ramp())[..., None],
    3,
    2,
)


def pgm(maximum: int) -> bytes:
    values = (maximum * ramp()).round().astype(">u2")
    return b"P5\n64 48\n%d\n" % maximum + values.tobytes()


def white_is_zero(order: str) -> bytes:
    """Return a 16-bit grey TIFF whose zero is white, in either byte order."""
    values = (65535 - DEEP).astype(f"{order}u2").tobytes()
    mark = {"<": b"II", ">": b"MM"}[order]
    entries = [
        (256, 64),
        (257, 48),
        (258, 16),
        (259, 1),
        (262, 0),
        (273, 8),
        (277, 1),
    ]
    entries += [
        (278, 48),
        (279, len(values)),
    ]
    table = struct.pack(
        f"{order}H",
        len(entries),
    )
    for tag, value in entries:
        table += struct.pack(
            f"{order}HHII",
            tag,
            4,
            1,
            value,
        )
    header = mark + struct.pack(f"{order}HI", 42, 8 + len(values))

    return header + values + table + bytes(4)


DEEP_KINDS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded(DEEP),  # type: ignore[arg-type]
    "TIFF": lambda: encoded(DEEP, "TIFF"),  # type: ignore[arg-type]
    "PGM": lambda: pgm(65535),
    "PGM of 12 bits": lambda: pgm(4095),
    "TIFF, white is zero, little-endian": lambda: white_is_zero("<"),
    "TIFF, white is zero, big-endian": lambda: white_is_zero(">"),
}


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_16_bit_grey_is_the_8_bit_one(kind: str) -> None:
    content = DEEP_KINDS[kind]()
    ours = decode_upright(content, MAX_PIXELS)
    assert np.abs(ours.astype(int) - SHALLOW).max() <= 1
    assert "16-bit grey" in convert_picture(content, ORIGINAL).changes


# ---- transparency ----


def test_a_transparent_grey_of_16_bits_is_white() -> None:
    value = int(DEEP[20, 30])
    content = png_with(
        DEEP,  # type: ignore[arg-type]
        (b"tRNS", struct.pack(">H", value)),
    )
    ours = decode_upright(content, MAX_PIXELS)
    clear = value == DEEP

    assert clear.any()
    assert (ours[clear] == 255).all()
    assert np.abs(ours[~clear].astype(int) - SHALLOW[~clear]).max() <= 1


def low_bit_png(bits: int, clear: int) -> bytes:
    """Return a grey PNG of few bits: one row of every level, one of them transparent."""
    values = np.arange(
        1 << bits,
        dtype=np.uint8,
    )
    packed = np.packbits((values[:, None] >> np.arange(bits - 1, -1, -1)) & 1)
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    return one_row_png(header, struct.pack(">H", clear), packed.tobytes())


def deep_color_png(colors: list[tuple[int, int, int]], clear: tuple[int, int, int]) -> bytes:
    """Return one row of 16-bit colors, one of them transparent."""
    header = struct.pack(">IIBBBBB", len(colors), 1, 16, 2, 0, 0, 0)
    row = np.array(colors, ">u2").tobytes()
    return one_row_png(header, struct.pack(">3H", *clear), row)


def one_row_png(header: bytes, clear: bytes, row: bytes) -> bytes:
    parts = [
        (b"IHDR", header),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"

    for name, data in parts:
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(
            ">I",
            zlib.crc32(name + data),
        )

    return content


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_white(bits: int) -> None:
    clear = (1 << bits) // 2
    row = decode_upright(low_bit_png(bits, clear), MAX_PIXELS)[0, :, 0]
    expected = np.arange(1 << bits) * 255 // ((1 << bits) - 1)
    expected[clear] = 255
    assert np.abs(row.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_is_kept_for_a_copy(bits: int) -> None:
    clear = (1 << bits) // 2
    image = read_upright(io.BytesIO(low_bit_png(bits, clear)), MAX_PIXELS).image
    assert np.flatnonzero(np.asarray(image)[0, :, 3] == 0).tolist() == [clear]


def test_a_transparent_color_of_16_bits_is_kept_for_a_copy_and_white_without_one() -> None:
    colors = [(65535, 0, 0), (300, 40_000, 9_000), (0, 0, 0)]
    content = deep_color_png(colors, colors[1])
    image = read_upright(io.BytesIO(content), MAX_PIXELS).image
    assert np.asarray(image)[0, :, 3].tolist() == [255, 0, 255]
    assert decode_upright(content, MAX_PIXELS)[0].tolist() == [[255, 0, 0], [255] * 3, [0, 0, 0]]

    # A color that no pixel has is no transparency, in whatever levels it is stated.
    unused = deep_color_png(colors, (5000, 6000, 7000))
    photo = read_upright(io.BytesIO(unused), MAX_PIXELS)
    assert decode_upright(unused, MAX_PIXELS).tolist() == np.asarray(photo.image).tolist()


def test_a_transparent_color_is_white() -> None:
    pixels = photo()
    value = pixels[10, 10]
    content = png_with(
        pixels,
        (b"tRNS", struct.pack(">3H", *value.tolist())),
    )
    ours = decode_upright(content, MAX_PIXELS)
    clear = (pixels == value).all(-1)

    assert (ours[clear] == 255).all()
    assert np.array_equal(
        ours[~clear],
        pixels[~clear],
    )


# ---- text, formats ----


@pytest.mark.parametrize("name", [b"iTXt", b"zTXt", b"tEXt"])
def test_text_of_any_size_is_nothing_to_an_image(name: bytes) -> None:
    long = b"x" * (3 << 20)
    data = {
        b"iTXt": b"k\0\1\0\0\0" + zlib.compress(long),
        b"zTXt": b"k\0\0" + zlib.compress(long),
        b"tEXt": b"k\0" + long,
    }[name]
    content = png_with(photo(), (name, data))

    assert np.array_equal(decode_upright(content, MAX_PIXELS), photo())


def test_a_wrong_checksum_of_a_text_is_nothing_to_an_image() -> None:
    whole = encoded(photo())
    text = struct.pack(">I", 3) + b"tEXta\0b" + bytes(4)
    with_text = whole[:33] + text + whole[33:]
    assert np.array_equal(decode_upright(with_text, 10**6), decode_upright(whole, 10**6))


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\x89PNG\r\n\x1a\n", "PNG"), (b"II*\0", "TIFF"), (b"\0\0\0\x20ftypavif", "AVIF")],
)
def test_a_damaged_file_of_a_known_format_is_named(start: bytes, name: str) -> None:
    with pytest.raises(PictureError, match=f"damaged or cut off, or a kind of {name}"):
        decode_upright(start + bytes(40), 10**6)


def test_grey_with_associated_alpha_is_laid_on_white_or_keeps_it() -> None:
    data = bytes([0, 0, 64, 128, 255, 255, 100, 255])
    entries = [(256, 1, 4), (257, 1, 1), (258, 2, 8 | 8 << 16), (259, 1, 1), (262, 1, 1)]
    entries += [(273, 1, 8), (277, 1, 2), (278, 1, 1), (279, 1, len(data)), (338, 1, 1)]
    packed = b"".join(struct.pack("<HHII", tag, 3, *values) for tag, *values in entries)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    content += struct.pack("<H", len(entries)) + packed + bytes(4)

    assert decode_upright(content, 10**6)[0, :, 0].tolist() == [255, 191, 255, 100]
    kept = np.asarray(read_upright(io.BytesIO(content), 10**6).image)
    assert kept[0, :, 3].tolist() == [0, 128, 255, 255]
    assert kept[0, 1:, 0].tolist() == [127, 255, 100]


def test_12_bit_grey_has_the_full_range() -> None:
    # Two samples in three bytes: black, white, the middle twice.
    data = bytes.fromhex("000fff800800")
    entries = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 3, 1), (279, 4, len(data))]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    content += struct.pack("<H", len(entries)) + packed + bytes(4)
    assert decode_upright(content, 10**6)[0, :, 0].tolist() == [0, 255, 128, 128]


def test_avif_is_read_whatever_its_name() -> None:
    content = encoded(photo(), "AVIF", quality=100, subsampling="4:4:4")

    assert (
        difference(
            decode_upright(content, MAX_PIXELS),
            photo(),
        )
        < 1.5
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(99), r"a HEIC file.*pip install 'pillow-heif"),
        (b"\xff\x0a" + bytes(99), r"a JPEG XL file.*pip install 'pillow-jxl-plugin"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"%PDF-1.7", "a PDF document"),
    ],
)
def test_what_is_no_photo_is_named(
    content: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.images.photo._load_plugin", lambda package: False)
    with pytest.raises(PictureError, match=words):
        decode_upright(content, MAX_PIXELS)
