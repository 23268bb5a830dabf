"""Names of files: lists of pictures, keys of samples, names from annotation files that must stay inside.

Only names and directory entries are looked at, no picture is opened: the sets have up to millions of them.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from datasets.errors import CorpusError

PICTURE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".jp2",
    )
)
MAX_KEY_LENGTH = (
    80  # a USTAR name has 100 bytes, an extension and the packer's own need some of them
)


def require_folder(folder: Path, what: str) -> Path:
    """Returns the folder. Raises CorpusError where it is none."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; {what}.")
    return folder


def is_picture(name: str) -> bool:
    """Whether a file name looks like a picture's: not hidden, a known extension in any case."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Returns a folder's entries without the hidden ones, sorted by name. Raises CorpusError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        raise CorpusError(f"{folder}: the folder cannot be listed ({error.strerror}).") from error


def list_pictures(folder: Path) -> list[str]:
    """Returns the names of the pictures directly in a folder, sorted; links to files are followed."""
    return [
        entry.name for entry in list_folder(folder) if is_picture(entry.name) and entry.is_file()
    ]


def walk_pictures(root: Path) -> Iterator[str]:
    """Yields the pictures under a folder as paths relative to it (with `/`), depth first, sorted by name.

    Links to folders are not followed (they could run in circles), links to files only where they stay inside.
    """
    real_root = root.resolve()
    todo = list_folder(root)[::-1]
    while todo:
        entry = todo.pop()
        if entry.is_dir(follow_symlinks=False):
            todo.extend(list_folder(Path(entry.path))[::-1])
        elif is_picture(entry.name) and entry.is_file() and _stays_inside(entry, real_root):
            yield Path(entry.path).relative_to(root).as_posix()


def _stays_inside(entry: os.DirEntry[str], real_root: Path) -> bool:
    return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(real_root)


def inside(folder: Path, name: str, source: Path) -> Path:
    """Joins a name that an annotation file gave. Raises CorpusError where it leads out of the folder."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise CorpusError(f"{source}: names {name!r}, which is no file inside {folder}.")
    return folder / pure


def require_files(folder: Path, names: Iterable[str], source: Path) -> None:
    """Checks by one listing that files are there. Raises CorpusError that counts the missing."""
    present = {entry.name for entry in list_folder(folder)}
    missing = [
        name
        for name in names
        if name not in present and not ("/" in name and (folder / name).is_file())
    ]
    if missing:
        raise CorpusError(
            f"{source}: {len(missing):,} of the files it names are missing in {folder}, "
            f"the first is {missing[0]}; fetch them, or take them off the list."
        )


def record_key(relative: str, suffix: str = ".jpg") -> str:
    """Returns the key of a picture from its path relative to the corpus: `cat.jpg` -> `cat`.

    A path that cannot be its own key (folders, other characters, another suffix, too long, or one that looks
    like a key made here) keeps what it can and gets eight hex digits of its hash: no two paths share one.
    """
    stem = relative.removesuffix(suffix)
    plain = re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}", stem) is not None
    if plain and relative.endswith(suffix) and not re.search(r"-[0-9a-f]{8}$", stem):
        return stem
    digest = hashlib.sha256(os.fsencode(relative)).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", str(PurePosixPath(relative).with_suffix("")))
    return f"{readable[: MAX_KEY_LENGTH - 9]}-{digest}"
