"""Photos named on the command line, and how their colored copies are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from colorgan.data import PHOTO_ENDINGS, PictureError, UprightPhoto, read_upright, replaced
from colorgan.errors import UsageError
from colorgan.files import replacing

OutputFormat = Literal["png", "jpeg"]
ENDINGS: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg"}
# zlib's usual level 6 takes 18 s for 100 megapixels, level 3 takes 7 s and 19 % more bytes.
OPTIONS: dict[OutputFormat, dict[str, int]] = {
    "png": {"compress_level": 3},
    # Chroma at full size: halving it would blur the very thing that was added.
    "jpeg": {"quality": 95, "subsampling": 0},
}
PAPER = (255, 255, 255)
# What the shell hands on of https://host/photo.jpg, once it has become a path: one slash is lost.
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoFile:
    """A photo and the path of its colored copy."""

    source: Path
    target: Path


def list_photos(
    named: Sequence[Path], out: Path, output: OutputFormat, *, overwrite: bool
) -> list[PhotoFile]:
    """Return the photos that are meant: files, and all photos below folders.

    A folder's photos keep their places below `out`.

    Raises:
        UsageError: A URL, a folder without photos, two photos for one copy, or a copy that exists.
    """
    photos: list[PhotoFile] = []
    for path in named:
        if URL.match(str(path)):
            raise UsageError(f"{path}: a URL; download the photo and name its file")
        photos += _photos_of(path, out, output)

    # a.png and a.jpg would become one file, the second silently over the first.
    refuse_clashes((photo.target, photo.source) for photo in photos)
    for photo in photos:
        _check_target(photo, overwrite)
    return photos


def refuse_clashes(written: Iterable[tuple[Path | str, Path | str]]) -> None:
    """Refuse two photos whose copies or answers would have one name.

    Args:
        written: The name that is written, and the photo that it is of.

    Raises:
        UsageError: Two photos have one.
    """
    photos: dict[Path | str, Path | str] = {}
    for target, photo in written:
        other = photos.setdefault(target, photo)
        if other != photo:
            raise UsageError(
                f"{other} and {photo} would both be written as {target}: use a different --out "
                "for each"
            )


def read_photo(path: Path, max_pixels: int) -> UprightPhoto:
    """Return a photo from its file, upright.

    Raises:
        PictureError: There is no such file, or no photo of at most `max_pixels` in it.
    """
    if not path.is_file():
        raise PictureError("no such file")
    # The pixel bound is checked in the header, before a crafted file takes the memory.
    with path.open("rb") as file:
        return read_upright(file, max_pixels)


def write_photo(
    colored: Image.Image, photo: UprightPhoto, target: Path, output: OutputFormat
) -> None:
    """Write a colored photo with the EXIF of its source, whole or not at all.

    Args:
        colored: Of mode RGB; or RGBA, which a PNG keeps, and which is laid on white in a JPEG and
            closed.
        photo: Its source.
        target: The file to write; its folder is made.
        output: Of the file.
    """
    if colored.mode == "RGBA" and output == "jpeg":
        colored = on_paper(colored)

    # A copy: the module's table must not learn one photo's EXIF.
    options: dict[str, Any] = dict(OPTIONS[output])
    if photo.exif:
        options["exif"] = photo.exif

    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        colored.save(partial, format=output.upper(), **options)


def on_paper(colored: Image.Image) -> Image.Image:
    """Return an image of mode RGBA on white, of mode RGB, in its place; it is closed."""

    def strip(box: tuple[int, int, int, int]) -> Image.Image:
        pixels = colored.crop(box)
        paper = Image.new("RGB", pixels.size, PAPER)
        paper.paste(pixels, mask=pixels)
        return paper

    return replaced(colored, "RGB", colored.size, strip)


def _photos_of(path: Path, out: Path, output: OutputFormat) -> Iterator[PhotoFile]:
    ending = ENDINGS[output]
    if not path.is_dir():
        yield PhotoFile(path, out / f"{path.stem}.{ending}")
        return

    # Sorted, so that messages and progress are the same on every file system.
    inside = [
        each
        for each in sorted(path.rglob("*"))
        if each.suffix.lower().lstrip(".") in PHOTO_ENDINGS and each.is_file()
    ]
    # With --out inside the folder, a second run would color the first one's results.
    is_output = out.resolve()
    found = [each for each in inside if is_output not in each.resolve().parents]
    if not found:
        raise UsageError(f"{path}: no photos in this folder ({', '.join(PHOTO_ENDINGS)})")
    for each in found:
        yield PhotoFile(each, (out / each.relative_to(path)).with_suffix(f".{ending}"))


def _check_target(photo: PhotoFile, overwrite: bool) -> None:
    # Not even with --overwrite: the original would be gone for good.
    if photo.target.resolve() == photo.source.resolve():
        raise UsageError(
            f"{photo.source} would be overwritten by its colored copy: choose another --out"
        )
    if photo.target.exists() and not overwrite:
        raise UsageError(f"{photo.target} exists: choose another --out, or add --overwrite true")
