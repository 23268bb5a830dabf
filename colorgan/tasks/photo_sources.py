"""Photos that a command is given: files, folders of them, and packed sets, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from colorgan.data import PackedPhotos, is_packed
from colorgan.tasks.photo_files import find_photos, on_paper, read_photo, refuse_clashes

PLAIN_STEM = re.compile(r"[\w-][\w.-]{0,199}")


@dataclass(frozen=True)
class PhotoSource:
    """A photo that is read when its turn comes.

    Attributes:
        name: Its file, or its set and key.
        stem: Of the files that are written about it: a path without an ending.
        version: Of its file: another one under the same name has another; empty for packed photos.
        read: Returns the photo at its own size, upright, of mode RGB.
    """

    name: str
    stem: str
    version: str
    read: Callable[[], Image.Image]


@contextmanager
def open_sources(
    named: Sequence[Path], out: Path, max_pixels: int, tell: Callable[[str], None] = print
) -> Iterator[list[PhotoSource]]:
    """Find the photos that are meant, and keep packed sets open meanwhile.

    Args:
        named: Photos, folders of photos, packed folders.
        out: Photos below it are not meant.
        max_pixels: Photos with more pixels are refused when they are read.
        tell: Takes a line on what is passed over.

    Raises:
        UsageError: A folder without photos, or one that cannot be listed.
        ShardError: A packed set cannot be opened.
    """
    with ExitStack() as stack:
        sources = []
        files = [path for path in named if not is_packed(path)]
        for file, stem in find_photos(files, out, tell):
            read = partial(_read_file, file, max_pixels)
            sources.append(PhotoSource(str(file), stem, _version_of(file), read))

        for path in named:
            if is_packed(path):
                packed = stack.enter_context(closing(PackedPhotos([path], max_pixels)))
                sources += _packed_sources(path, packed)

        yield sources


def _version_of(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""  # reading it will say why
    return f"{found.st_size} bytes, {found.st_mtime_ns}"


def _read_file(path: Path, max_pixels: int) -> Image.Image:
    image = read_photo(path, max_pixels).image
    # As packing does: a model's pictures have three channels.
    return on_paper(image) if image.mode == "RGBA" else image


def _packed_sources(path: Path, packed: PackedPhotos) -> Iterator[PhotoSource]:
    seen = set()
    for number in range(len(packed)):
        key = packed.key(number)
        # Shards made elsewhere may number anew in each tar: a key that was there before says no
        # more which photo it is.
        name = f"{path}/{key}" if key not in seen else f"{path}/{key}#{number}"
        # A key of a tar from elsewhere may be any path; what is written stays below `out`.
        is_plain = PLAIN_STEM.fullmatch(key) and key not in seen
        stem = key if is_plain else f"sample-{number:09d}"
        seen.add(key)
        yield PhotoSource(name, stem, "", partial(packed.read, number))


def check_stems(sources: Sequence[PhotoSource]) -> None:
    """Refuse photos whose files would have one name.

    Raises:
        UsageError: Two have.
    """
    refuse_clashes((source.stem, source.name) for source in sources)
