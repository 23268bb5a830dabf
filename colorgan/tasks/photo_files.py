"""Photos named on the command line, and how their colored copies are written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

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
MAX_KINDS = 8  # of files passed over that a line names
MAX_JPEG_SIDE = 65_500  # of libjpeg
# What the shell hands on of https://host/photo.jpg, once it has become a path: one slash is lost.
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class PhotoFile:
    """A photo and the path of its colored copy."""

    source: Path
    target: Path


def list_photos(
    named: Sequence[Path],
    out: Path,
    output: OutputFormat,
    *,
    overwrite: bool,
    tell: Callable[[str], None] = print,
) -> list[PhotoFile]:
    """Return the photos that are meant, each with the path of its copy.

    A folder's photos keep their places below `out`.

    Args:
        named: Files and folders.
        out: Folder for the copies.
        output: Their format.
        overwrite: Copies may replace files, but never a photo itself.
        tell: Takes a line on what is passed over.

    Raises:
        UsageError: As `find_photos`; two photos for one copy, or a copy that exists.
    """
    photos = [
        PhotoFile(source, out / f"{stem}.{ENDINGS[output]}")
        for source, stem in find_photos(named, out, tell)
    ]
    # a.png and a.jpg would become one file, the second silently over the first.
    refuse_clashes((photo.target, photo.source) for photo in photos)
    for photo in photos:
        _check_target(photo, overwrite)
    return photos


def find_photos(
    named: Sequence[Path], out: Path, tell: Callable[[str], None] = print
) -> list[tuple[Path, str]]:
    """Return the photos that are meant: files, and all photos below folders, once each.

    Hidden files and what lies below `out` are not meant; links are followed.

    Args:
        named: Files and folders.
        out: Folder of the results.
        tell: Takes a line on what is passed over.

    Returns:
        Each photo, and its path without ending: relative to the folder that was named, or its name.

    Raises:
        UsageError: A URL, a folder without photos, or one that cannot be listed.
    """
    photos: dict[Path, str] = {}
    for path in named:
        if URL.match(str(path)):
            raise UsageError(f"{path}: a URL; download the photo and name its file")
        found = _photos_below(path, out, tell) if path.is_dir() else [path]
        base = path if path.is_dir() else path.parent
        for photo in found:
            photos.setdefault(photo, photo.relative_to(base).with_suffix("").as_posix())
    return list(photos.items())


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

    Raises:
        PictureError: It is too large for a JPEG.
    """
    if output == "jpeg" and max(colored.size) > MAX_JPEG_SIDE:
        raise PictureError(
            f"{colored.width} x {colored.height} pixels, of which a JPEG holds {MAX_JPEG_SIDE:,} a "
            "side: use --format png"
        )
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


def _photos_below(folder: Path, out: Path, tell: Callable[[str], None]) -> list[Path]:
    """Return the photos below a folder, sorted, so that messages are the same everywhere."""
    results = out.resolve()
    photos, passed_over, own = [], Counter[str](), 0
    for path in _files_below(folder):
        ending = path.suffix.lower().lstrip(".")
        if results in path.resolve().parents:
            # With --out inside the folder, a second run would color the first one's results.
            own += ending in PHOTO_ENDINGS
        elif ending in PHOTO_ENDINGS:
            photos.append(path)
        else:
            passed_over[f".{ending}" if ending else "no ending"] += 1

    if passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in passed_over.most_common(MAX_KINDS))
        more = ", ..." if len(passed_over) > MAX_KINDS else ""
        tell(f"{folder}: files passed over, as their endings are no photo's: {kinds}{more}")
    if not photos:
        reason = f"; {own} are below {out}, where results go" if own else ""
        raise UsageError(f"{folder}: no photos in this folder ({', '.join(PHOTO_ENDINGS)}){reason}")
    return sorted(photos)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, no hidden ones; links are followed.

    Raises:
        UsageError: A folder cannot be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UsageError(f"{error.filename}: the folder cannot be listed ({error.strerror})")

    linked = {folder.resolve()}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        # In place, which is how the walk is told where not to go.
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and _is_new(Path(parent, name), linked)
        ]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _is_new(folder: Path, linked: set[Path]) -> bool:
    """Return whether no link has led to a folder, nor leads to one that contains itself."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    # Links to each other would lead round for ever.
    if target in linked or target in folder.parent.resolve().parents:
        return False
    linked.add(target)
    return True


def _check_target(photo: PhotoFile, overwrite: bool) -> None:
    # Not even with --overwrite: the original would be gone for good.
    if photo.target.resolve() == photo.source.resolve():
        raise UsageError(
            f"{photo.source} would be overwritten by its colored copy: choose another --out"
        )
    if photo.target.exists() and not overwrite:
        raise UsageError(f"{photo.target} exists: choose another --out, or add --overwrite true")
