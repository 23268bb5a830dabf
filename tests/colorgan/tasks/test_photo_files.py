"""colorgan/tasks/photo_files.py: which photos are meant, where copies go, and what they keep."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from colorgan.data import PictureError, read_upright
from colorgan.errors import UsageError
from colorgan.tasks.photo_files import find_photos, list_photos, read_photo, write_photo

MAX_PIXELS = 10**6
KINDS = ("rgb.jpg", "turned.jpg", "rgb.png", "rgba.png", "palette.png", "clear.png", "deep.png")
# Reads and writes each photo and prints its peaks, in both and in writing alone, in bytes per pixel
# above what the process has after a first photo, a small one, has brought code and tables.
MEMORY = """
import re, sys
from pathlib import Path
from typing import Any
from colorgan.tasks.photo_files import read_photo, write_photo
from shards.images import strips

def of(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

strips.BIG_PIXELS, strips.STRIP_PIXELS = 1_000_000, 100_000
paths = [Path(word) for word in sys.argv[1:]]
before = 0
for path in paths:
    photo = None
    Path("/proc/self/clear_refs").write_text("5")
    photo = read_photo(path, 10**8)
    output = path.name.split("-")[0]
    num_pixels = photo.image.width * photo.image.height
    reading = of("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    write_photo(photo.image, photo, path.with_suffix(".copy"), output)
    writing = of("VmHWM")
    before = before or of("VmRSS")
    print(path.name, *((peak - before) / num_pixels for peak in (max(reading, writing), writing)))
"""


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


def test_links_are_followed_and_hidden_files_are_not_meant(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    one = draw(folder / "a.jpg")
    draw(folder / "._a.jpg")
    draw(folder / ".thumbs" / "b.jpg")
    draw(tmp_path / "elsewhere" / "c.jpg")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    # Links that would lead round for ever, and one to itself.
    (folder / "round").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")

    found = find_photos([folder, folder], tmp_path / "out")
    assert found == [(one, "a"), (folder / "linked" / "c.jpg", "linked/c")]


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    for name in ("b.cr2", "c.cr2", "d"):
        (tmp_path / name).write_bytes(b"x")
    told: list[str] = []
    find_photos([tmp_path], tmp_path / "out", told.append)
    assert told == [
        f"{tmp_path}: files passed over, as their endings are no photo's: 2 .cr2, 1 no ending"
    ]


def test_photos_among_the_results_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=f"; 1 are below {tmp_path}, where results go"):
        find_photos([tmp_path], tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "a.jpg")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        # Root may list every folder.
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"locked: the folder cannot be listed \(Permission"):
        find_photos([tmp_path], tmp_path / "out")


def test_a_jpeg_that_is_too_large_is_refused_in_words(tmp_path: Path) -> None:
    photo = read_photo(draw(tmp_path / "a.png"), 10_000)
    with pytest.raises(PictureError, match=r"65501 x 1 pixels.* use --format png"):
        write_photo(Image.new("RGB", (65_501, 1)), photo, tmp_path / "b.jpg", "jpeg")
    assert not (tmp_path / "b.jpg").exists()


def test_long_names_of_several_bytes_a_character_are_written(tmp_path: Path) -> None:
    name = "\u7167" * 80 + ".png"
    photo = read_photo(draw(tmp_path / name), 10_000)
    write_photo(photo.image, photo, tmp_path / "out" / name, "png")
    assert (tmp_path / "out" / name).is_file()


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


def test_exif_of_a_tiff_tells_of_the_photo_alone(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    photo = read_photo(draw(tmp_path / "a.tif", exif=tags, compression="tiff_lzw"), MAX_PIXELS)
    for output, name in (("png", "b.png"), ("jpeg", "b.jpg")):
        write_photo(photo.image, photo, tmp_path / name, output)  # type: ignore[arg-type]
        with Image.open(tmp_path / name) as copy:
            found = dict(copy.getexif())
            found.pop(ExifTags.IFD.Exif, None)  # where a second table begins
            assert found == {0x010F: "Maker"}


def test_exif_is_kept_without_the_turn_that_is_applied(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010F] = "Maker"
    tags[0x8769] = {0xA001: 2, 0x9003: "2020:01:02 03:04:05"}
    photo = read_photo(draw(tmp_path / "a.jpg", exif=tags), MAX_PIXELS)
    assert photo.image.size == (16, 24)
    assert photo.image.mode == "RGB"

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
    photo = read_photo(draw(tmp_path / "a.png", mode), MAX_PIXELS)
    assert photo.image.mode == "RGBA"
    colors = np.asarray(photo.image)[..., :3].astype(float)
    alpha = np.asarray(photo.image)[..., 3]
    assert np.array_equal(alpha, 255 - colors[..., 0])

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
            alpha,
        )
        assert np.array_equal(
            np.asarray(copy)[..., :3],
            colors,
        )

    write_photo(photo.image, photo, tmp_path / "b.jpg", "jpeg")
    share = alpha[..., None] / 255
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

    assert read_upright(stream, MAX_PIXELS).image.mode == "RGB"


def drawn_kinds(folder: Path, width: int, height: int) -> dict[str, Path]:
    """Write a noisy photo in every kind of file, by name."""
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    clear = noise.copy()
    clear.putalpha(Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)))
    deep = random.integers(0, 65536, (height, width), dtype=np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6

    paths = {name: folder / name for name in KINDS}
    noise.save(paths["rgb.jpg"])
    noise.save(paths["turned.jpg"], exif=turned)
    noise.save(paths["rgb.png"], compress_level=1)
    clear.save(paths["rgba.png"], compress_level=1)
    palette = noise.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(paths["palette.png"], compress_level=1)
    palette.save(paths["clear.png"], compress_level=1, transparency=3)
    Image.fromarray(deep).save(paths["deep.png"], compress_level=1)
    return paths


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_photos_are_read_as_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    paths = drawn_kinds(tmp_path, 61, 47)
    for ending in ("jpg", "png", "tif"):
        paths[ending] = tmp_path / f"turned.{ending}"
        with Image.open(paths["rgba.png"]) as photo:
            photo.convert("RGB" if ending == "jpg" else "RGBA").save(paths[ending], exif=tags)

    small = {name: read_photo(path, MAX_PIXELS) for name, path in paths.items()}
    monkeypatch.setattr("shards.images.strips.BIG_PIXELS", 100)
    monkeypatch.setattr("shards.images.strips.STRIP_PIXELS", 300)
    for name, path in paths.items():
        large = read_photo(path, MAX_PIXELS)
        assert large.image.mode == small[name].image.mode, name
        assert np.array_equal(np.asarray(large.image), np.asarray(small[name].image)), name


def measured(small: Path, *large: Path) -> list[tuple[float, float]]:
    """Return what each large photo takes, as MEMORY prints it."""
    Image.new("RGBA", (8, 8)).save(small)
    words = [sys.executable, "-c", MEMORY, str(small), *map(str, large)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    _, *lines = (line.split() for line in done.stdout.splitlines())
    assert len(lines) == len(large)
    return [(float(both), float(writing)) for _, both, writing in lines]


def test_a_large_photo_is_in_memory_once(tmp_path: Path) -> None:
    paths = []
    for name, path in drawn_kinds(tmp_path, 2400, 1800).items():
        # The start of the name says how the copy is written.
        paths.append(path.rename(tmp_path / f"png-{name}"))
    paths.append(shutil.copy(tmp_path / "png-rgba.png", tmp_path / "jpeg-rgba.png"))
    found = measured(tmp_path / "png-small.png", *paths)
    assert len(found) == len(KINDS) + 1
    for both, _ in found:
        # Four bytes per pixel of the photo, one of its transparency or of grey, and up to two that
        # the allocator keeps; a second copy would add four, the bytes of a PNG of noise three.
        assert 3.0 < both < 7.9, found


def test_a_transparent_photo_takes_no_more_than_an_opaque_one_once_it_is_read(
    tmp_path: Path,
) -> None:
    path = drawn_kinds(tmp_path, 2400, 1800)["rgba.png"].rename(tmp_path / "png-rgba.png")
    ((reading, writing),) = measured(tmp_path / "png-small.png", path)
    # A channel of its own would make five bytes per pixel of four.
    assert 4.0 <= reading < 5.6
    assert 4.0 <= writing < 4.6


def test_coloring_photos_does_without_the_library_that_decodes_batches() -> None:
    code = "import sys, colorgan.tasks.photo_coloring; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
