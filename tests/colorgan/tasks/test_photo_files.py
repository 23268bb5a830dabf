"""colorgan/tasks/photo_files.py: which photos are meant, where copies go, and what they keep."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorgan.data import read_upright
from colorgan.errors import UsageError
from colorgan.tasks.photo_files import list_photos, write_photo

MAX_PIXELS = 10**6


def draw(path: Path, mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(20, 220, 24 * 16).reshape(16, 24).astype(np.uint8)
    image = Image.merge(
        "RGBA",
        [Image.fromarray(ramp)] * 3 + [Image.fromarray(255 - ramp)],
    )
    image.convert(mode).save(path, **options)  # type: ignore[arg-type]

    return path


def test_folders_are_taken_whole_and_keep_their_places(tmp_path: Path) -> None:
    photos = [draw(tmp_path / "in" / name) for name in ("a.jpg", "b/a.PNG", "b/c/d.tif")]
    (tmp_path / "in" / "notes.txt").write_text("")
    draw(tmp_path / "in" / "out" / "old.png")
    out = tmp_path / "in" / "out"

    files = list_photos(
        [tmp_path / "in"],
        out,
        "jpeg",
        overwrite=False,
    )
    assert [file.source for file in files] == photos
    names = ["a.jpg", "b/a.jpg", "b/c/d.jpg"]
    assert [file.target for file in files] == [out / name for name in names]


@pytest.mark.parametrize("url", ["https://host/a.jpg", "s3://bucket/a.jpg", "file:///a.jpg"])
def test_urls_are_refused_in_words(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a URL; download the photo"):
        list_photos(
            [Path(url)],
            tmp_path,
            "png",
            overwrite=False,
        )


def test_copies_that_would_collide_are_refused(tmp_path: Path) -> None:
    one = draw(tmp_path / "x" / "a.jpg")
    other = draw(tmp_path / "y" / "a.png")

    with pytest.raises(UsageError, match="would both be written as"):
        list_photos(
            [one, other],
            tmp_path / "out",
            "png",
            overwrite=False,
        )
    with pytest.raises(UsageError, match="overwritten by its colored copy"):
        list_photos([other], other.parent, "png", overwrite=True)

    draw(tmp_path / "out" / "a.png")
    with pytest.raises(UsageError, match="exists"):
        list_photos([one], tmp_path / "out", "png", overwrite=False)
    assert list_photos(
        [one],
        tmp_path / "out",
        "png",
        overwrite=True,
    )

    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no photos in this folder"):
        list_photos(
            [tmp_path / "empty"],
            tmp_path / "out",
            "png",
            overwrite=False,
        )


def test_exif_is_kept_without_the_turn_that_is_applied(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010F] = "Maker"
    tags[0x8769] = {0xA001: 2, 0x9003: "2020:01:02 03:04:05"}
    photo = read_upright(
        draw(tmp_path / "a.jpg", exif=tags).read_bytes(),
        MAX_PIXELS,
    )
    assert photo.image.size == (16, 24)
    assert photo.alpha is None

    for output, name in (("png", "a.png"), ("jpeg", "a.jpg")):
        write_photo(
            photo.image,
            photo,
            tmp_path / "out" / name,
            output,  # type: ignore[arg-type]
        )
        with Image.open(tmp_path / "out" / name) as copy:
            kept = copy.getexif()
            assert copy.size == (16, 24)
            assert kept[0x010F] == "Maker"
            assert 0x0112 not in kept
            assert kept.get_ifd(0x8769) == {0x9003: "2020:01:02 03:04:05"}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_kept_in_a_png_and_laid_on_white_in_a_jpeg(
    tmp_path: Path, mode: str
) -> None:
    photo = read_upright(
        draw(tmp_path / "a.png", mode).read_bytes(),
        MAX_PIXELS,
    )
    colors = np.asarray(photo.image).astype(float)
    assert photo.alpha is not None

    write_photo(
        photo.image.copy(),
        photo,
        tmp_path / "b.png",
        "png",
    )
    with Image.open(tmp_path / "b.png") as copy:
        assert copy.mode == "RGBA"
        assert np.array_equal(
            np.asarray(copy)[..., 3],
            np.asarray(photo.alpha),
        )
        assert np.array_equal(
            np.asarray(copy)[..., :3],
            colors,
        )

    write_photo(photo.image, photo, tmp_path / "b.jpg", "jpeg")
    share = np.asarray(photo.alpha)[..., None] / 255
    with Image.open(tmp_path / "b.jpg") as copy:
        expected = share * colors + (1 - share) * 255
        assert np.abs(np.asarray(copy.convert("RGB")) - expected).mean() < 2


def test_an_opaque_alpha_channel_is_dropped() -> None:
    stream = io.BytesIO()
    Image.new(
        "RGBA",
        (8, 8),
        (1, 2, 3, 255),
    ).save(
        stream,
        "PNG",
    )

    assert read_upright(stream.getvalue(), MAX_PIXELS).alpha is None
