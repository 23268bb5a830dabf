"""shards/images/conversion.py: every kind of image is converted or refused with a reason."""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from shards.errors import PackError, PictureError
from shards.images.conversion import convert_mask, convert_picture
from shards.images.label_frame import label_frame
from shards.images.policy import Encoding, Geometry, parse_image_policy

ORIGINAL = Encoding(parse_image_policy("original"))
SQUASH = Encoding(parse_image_policy("squash:32"))


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth colours, different in each corner, so that JPEG loses little and turns show."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack(
        [
            255 * x,
            255 * y,
            128 * (1 - x) + 60 * y,
        ],
        axis=-1,
    )

    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def decoded(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    assert image.mode in ("RGB", "L")
    assert image.getexif().get(0x0112, 1) == 1
    assert "icc_profile" not in image.info
    return image.convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(image.convert("RGB"), np.float64) for image in (one, other))
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())


def palette_with_alpha() -> bytes:
    image = photo().convert("P", palette=Image.Palette.ADAPTIVE)
    return encoded(
        image,
        "PNG",
        transparency=bytes([255] * 255 + [0]),
    )


def half_clear() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    return image


def on_white(image: Image.Image, alpha: float) -> Image.Image:
    return Image.blend(
        Image.new("RGB", image.size, "white"),
        image,
        alpha,
    )


def grey16(kind: str) -> bytes:
    ramp = (
        np.linspace(0, 65535, 60 * 40)
        .reshape(
            40,
            60,
        )
        .astype(np.uint16)
    )

    return encoded(Image.fromarray(ramp), kind)


def mpo() -> bytes:
    """Return what phones write: the photo, and a second image behind it."""
    return encoded(
        photo(), "MPO", save_all=True, append_images=[ImageOps.invert(photo())], quality=95
    )


RAMP = Image.fromarray(np.linspace(0, 255, 60 * 40).reshape(40, 60).round().astype(np.uint8))
DOTS = Image.fromarray((np.indices((40, 60)).sum(0) // 10 % 2 * 255).astype(np.uint8))

KINDS: dict[str, tuple[Callable[[], bytes], Image.Image, float]] = {
    "rgb png": (lambda: encoded(photo()), photo(), 1.0),
    "rgb jpeg": (
        lambda: encoded(photo(), "JPEG", quality=95),
        photo(),
        1.5,
    ),
    "progressive jpeg": (
        lambda: encoded(photo(), "JPEG", quality=95, progressive=True),
        photo(),
        1.5,
    ),
    "grey": (lambda: encoded(RAMP), RAMP, 1.0),
    "1-bit png": (
        lambda: encoded(DOTS.convert("1")),
        DOTS,
        3.0,
    ),
    "1-bit tiff, white is zero": (
        lambda: encoded(DOTS.convert("1"), "TIFF", compression="group4"),
        DOTS,
        3.0,
    ),
    "16-bit grey png": (lambda: grey16("PNG"), RAMP, 1.0),
    "16-bit grey tiff": (lambda: grey16("TIFF"), RAMP, 1.0),
    "cmyk jpeg (Adobe)": (
        lambda: encoded(photo().convert("CMYK"), "JPEG", quality=95),
        photo(),
        2.5,
    ),
    "cmyk tiff": (
        lambda: encoded(photo().convert("CMYK"), "TIFF"),
        photo(),
        1.0,
    ),
    "ycbcr tiff": (
        lambda: encoded(photo().convert("YCbCr"), "TIFF"),
        photo(),
        1.5,
    ),
    "palette": (
        lambda: encoded(photo().quantize(256)),
        photo().quantize(256).convert("RGB"),
        3.0,
    ),
    "palette with alpha": (palette_with_alpha, photo(), 6.0),
    "rgba": (
        lambda: encoded(half_clear()),
        on_white(photo(), 128 / 255),
        1.0,
    ),
    "webp": (
        lambda: encoded(photo(), "WEBP", lossless=True),
        photo(),
        1.0,
    ),
    "gif, one frame": (
        lambda: encoded(photo().quantize(256), "GIF"),
        photo(),
        6.0,
    ),
    "bmp": (
        lambda: encoded(photo(), "BMP"),
        photo(),
        1.0,
    ),
    "jpeg 2000": (
        lambda: encoded(photo(), "JPEG2000"),
        photo(),
        1.0,
    ),
    "mpo, its first picture": (mpo, photo(), 1.5),
    "la": (
        lambda: encoded(
            Image.merge(
                "LA",
                (RAMP, RAMP.point(lambda _: 255)),
            )
        ),
        RAMP,
        1.0,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", [ORIGINAL, SQUASH])
def test_kinds_with_one_meaning_are_converted(kind: str, encoding: Encoding) -> None:
    make, meaning, tolerance = KINDS[kind]
    stored = convert_picture(make(), encoding)
    size = encoding.policy.target(60, 40)
    expected = meaning.convert("RGB").resize(
        size,
        Image.Resampling.BICUBIC,
    )
    result = decoded(stored.jpeg)

    assert (
        result.size
        == size
        == (
            stored.geometry.width,
            stored.geometry.height,
        )
    )
    assert difference(result, expected) < tolerance


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(
        jpeg[start + 2 : start + 4],
        "big",
    )
    return jpeg[:start] + jpeg[start + 2 + length :]


def test_cmyk_jpeg_without_adobes_marker_is_not_inverted() -> None:
    negative = photo().convert("CMYK").point(lambda value: 255 - value)
    plain = without_adobe_marker(
        encoded(negative, "JPEG", quality=95)
    )  # PIL inverts: so this stores the photo

    assert (
        difference(
            decoded(convert_picture(plain, ORIGINAL).jpeg),
            photo(),
        )
        < 2.5
    )


def broken(picture: Image.Image, kind: str, keep: float) -> bytes:
    content = encoded(picture, kind)
    return content[: int(len(content) * keep)]


def animation() -> bytes:
    frames = [photo(), ImageOps.mirror(photo())]
    return encoded(
        frames[0],
        "GIF",
        save_all=True,
        append_images=frames[1:],
    )


def animated_png() -> bytes:
    return encoded(
        photo(),
        "PNG",
        save_all=True,
        append_images=[ImageOps.mirror(photo())],
    )


def two_pages() -> bytes:
    return encoded(
        photo(),
        "TIFF",
        save_all=True,
        append_images=[photo()],
    )


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", r"empty file \(0 bytes\)"),
    "text": (lambda: b"<html>404</html>", "not a picture of a known format"),
    "garbage behind a JPEG's first bytes": (lambda: b"\xff\xd8\xff\xe0" + bytes(range(256)), "."),
    "truncated jpeg": (
        lambda: broken(photo(640, 480), "JPEG", 0.5),
        "cannot be decoded: .*truncated",
    ),
    "truncated png": (
        lambda: broken(photo(640, 480), "PNG", 0.5),
        "cannot be decoded",
    ),
    "header alone": (lambda: broken(photo(), "PNG", 0.15), "."),
    "animated png": (animated_png, "animated or multi-page"),
    "animated gif": (animation, "animated or multi-page"),
    "two-page tiff": (two_pages, "animated or multi-page"),
    "floating point": (
        lambda: encoded(
            Image.new("F", (8, 8), 0.5),
            "TIFF",
        ),
        "mode F",
    ),
    "32-bit": (
        lambda: encoded(
            Image.new("I", (8, 8), 70000),
            "TIFF",
        ),
        "mode I",
    ),
    "eps": (lambda: encoded(photo(), "EPS"), "not a picture of a known format"),
    "bomb": (lambda: bomb(20_000, 20_000), "decompression bomb"),
    "large": (lambda: bomb(11_000, 10_000), "more than 100000000 pixels: 11000 x 10000"),
}


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header states a size that its few bytes do not hold."""
    content = bytearray(encoded(Image.new("L", (1, 1))))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_meaning_is_refused_with_a_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    for encoding in (ORIGINAL, SQUASH):
        with pytest.raises(PictureError, match=reason):
            convert_picture(make(), encoding)


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
    content = bytearray(encoded(photo(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]

    try:
        stored = convert_picture(bytes(content), SQUASH)
    except PictureError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert decoded(stored.jpeg).size == (32, 32)


def test_reasons_are_the_same_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("odd <PIL.X object at 0x7fe1019dd9d0>\nsecond line")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(PictureError, match=r"^cannot be decoded: odd <PIL\.X object> second line$"):
        convert_picture(b"x", SQUASH)


def test_original_keeps_the_bytes_of_plain_jpegs_only() -> None:
    for image in (photo(), RAMP):
        plain = encoded(image, "JPEG", quality=80)
        assert convert_picture(plain, ORIGINAL).jpeg == plain
    turned = encoded(photo(), "JPEG", exif=exif(6))

    assert convert_picture(turned, ORIGINAL).jpeg != turned
    small = Encoding(parse_image_policy("short:64"))
    plain = encoded(photo(), "JPEG", quality=80)

    assert convert_picture(plain, small).jpeg == plain  # never enlarged


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def white_box() -> NDArray[np.uint8]:
    """Return an image that every mirror and turn changes: a white box off the center of black."""
    pixels = np.zeros((48, 64), np.uint8)
    pixels[8:24, 40:60] = 255
    return pixels


def upright_of(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the plane as Pillow shows an image of this EXIF orientation."""
    content = encoded(
        Image.fromarray(pixels),
        "PNG",
        exif=exif(orientation),
    )
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("policy", ["original", "short:24", "squash:96"])
def test_orientation_turns_picture_mask_and_boxes_alike(
    kind: str, orientation: int, policy: str
) -> None:
    """A white box on black is where the label's box and mask are, made on the upright view."""
    source = Image.merge(
        "RGB",
        [Image.fromarray(white_box())] * 3,
    )
    content = encoded(source, kind, exif=exif(orientation))
    upright = upright_of(white_box(), orientation)
    rows, columns = np.nonzero(upright)

    stored = convert_picture(
        content,
        Encoding(parse_image_policy(policy), jpeg_quality=100),
    )
    picture = np.asarray(decoded(stored.jpeg).convert("L"))

    frame = label_frame(
        upright.shape[::-1],
        stored.geometry,
    )
    corners = (
        columns.min(),
        rows.min(),
        columns.max() + 1,
        rows.max() + 1,
    )
    x0, y0, x1, y1 = (round(value) for value in frame.move_box(corners, stored.geometry))
    box = np.zeros_like(picture)
    box[y0:y1, x0:x1] = 1
    mask = np.asarray(
        Image.open(
            io.BytesIO(
                convert_mask(
                    upright // 255,
                    stored.geometry,
                    1,
                )
            )
        )
    )

    assert np.array_equal(mask, box)
    assert np.abs((picture > 127).astype(int) - box).mean() < 0.02


def test_orientation_is_pils() -> None:
    for orientation in range(1, 9):
        content = encoded(photo(), "PNG", exif=exif(orientation))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert (
            difference(
                decoded(convert_picture(content, ORIGINAL).jpeg),
                upright,
            )
            < 1.0
        )


def test_unknown_orientations_and_damaged_exif_mean_upright() -> None:
    for tags in (exif(9).tobytes(), b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        stored = convert_picture(
            encoded(photo(), "JPEG", exif=tags),
            SQUASH,
        )
        assert stored.geometry.orientation == 1


def test_settings_reach_the_jpeg() -> None:
    sizes = []
    for quality, sampling, number in ((95, "4:4:4", 0), (95, "4:2:0", 2), (50, "4:2:2", 1)):
        encoding = Encoding(parse_image_policy("squash:32"), quality, sampling)
        jpeg = convert_picture(encoded(photo()), encoding).jpeg
        assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(jpeg))) == number
        sizes.append(len(jpeg))
    assert sizes[2] < sizes[1] < sizes[0]


def swapped_profile() -> bytes:
    """Return a camera's profile whose first and second primaries are sRGB's, swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red = profile.index(b"rXYZ")
    green = profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"

    return bytes(profile).replace(
        "sRGB".encode("utf-16-be"),
        "Swap".encode("utf-16-be"),
    )


def test_a_foreign_profile_is_converted_and_srgb_is_not() -> None:
    red, green, blue = photo().split()
    swapped = Image.merge("RGB", (green, red, blue))
    content = encoded(swapped, "JPEG", quality=95, icc_profile=swapped_profile())

    for encoding in (ORIGINAL, SQUASH):
        stored = convert_picture(content, encoding)
        size = stored.geometry.width, stored.geometry.height
        assert (
            difference(
                decoded(stored.jpeg),
                photo().resize(size, Image.Resampling.BICUBIC),
            )
            < 2.5
        )

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile at all"):
        plain = encoded(photo(), "JPEG", icc_profile=profile)
        assert convert_picture(plain, ORIGINAL).jpeg == plain


def test_scaled_decoding_stays_close_to_the_full_one() -> None:
    large = photo(900, 600)
    noise = np.random.default_rng(0).normal(
        0,
        8,
        (600, 900, 3),
    )
    large = Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
    content = encoded(large, "JPEG", quality=95)
    result = decoded(convert_picture(content, SQUASH).jpeg)
    full = Image.open(io.BytesIO(content)).resize(
        (32, 32),
        Image.Resampling.BICUBIC,
    )

    assert difference(result, full) < 1.5


def mask_of(
    values: NDArray[np.uint8],
    width: int,
    height: int,
) -> NDArray[np.uint8]:
    geometry = Geometry(
        values.shape[1],
        values.shape[0],
        1,
        width,
        height,
    )
    image = Image.open(io.BytesIO(convert_mask(values, geometry, 20)))

    assert image.mode == "L"
    assert image.size == (width, height)
    return np.asarray(image)


def test_masks_are_resized_by_nearest() -> None:
    values = (
        np.random.default_rng(0)
        .choice(
            [0, 1, 20, 255],
            (40, 60),
        )
        .astype(np.uint8)
    )

    assert np.array_equal(mask_of(values, 60, 40), values)
    rows, columns = (
        (np.arange(24) + 0.5) * 40 / 24,
        (np.arange(36) + 0.5) * 60 / 36,
    )  # no centre on an edge

    assert np.array_equal(
        mask_of(values, 36, 24),
        values[rows.astype(int)][:, columns.astype(int)],
    )


def test_wrong_masks_are_refused() -> None:
    geometry = Geometry(60, 40, 1, 32, 32)

    for mask, reason in (
        (np.zeros((60, 40), np.uint8), "mask is 60 x 40 .*, its picture 40 x 60"),
        (np.zeros((40, 60), np.int64), "int64"),
        (np.zeros((40, 60, 3), np.uint8), "40 x 60 x 3"),
        (np.full((40, 60), 21, np.uint8), "index above the 20 classes: 21"),
    ):
        with pytest.raises(PictureError, match=reason):
            convert_mask(mask, geometry, 20)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "squash", "squash:", "squash:0", "short:-1", "short:9999", "Original"]
)
def test_unknown_policies_are_refused(text: str) -> None:
    with pytest.raises(PackError, match="use original, short:N"):
        parse_image_policy(text)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(8, 512),
)
def test_policies_give_the_sizes_they_say(width: int, height: int, size: int) -> None:
    assert parse_image_policy(f"squash:{size}").target(
        width,
        height,
    ) == (size, size)

    short = parse_image_policy(f"short:{size}")
    assert str(short) == f"short:{size}"
    w, h = short.target(width, height)

    assert min(w, h) == min(size, width, height)
    assert abs(w * height - h * width) <= max(width, height)  # the sides' ratio, but for rounding


def test_a_sliver_cannot_blow_up() -> None:
    sliver = encoded(
        Image.new("RGB", (2, 60_000)),
        "PNG",
    )
    stored = convert_picture(sliver, Encoding(parse_image_policy("short:8")))

    assert (
        stored.geometry.width,
        stored.geometry.height,
    ) == (2, 60_000)
    with pytest.raises(PictureError, match="too large to store"):
        convert_picture(
            encoded(Image.new("RGB", (2, 70_000)), "PNG"),
            ORIGINAL,
        )


@pytest.mark.parametrize(
    "values", [{"jpeg_quality": 0}, {"chroma_subsampling": "4:1:1"}, {"max_pixels": 0}]
)
def test_wrong_settings_are_refused(values: dict[str, int | str]) -> None:
    with pytest.raises(PackError, match=next(iter(values))):
        Encoding(parse_image_policy("original"), **values)  # type: ignore[arg-type]
