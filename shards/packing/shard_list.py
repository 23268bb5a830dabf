"""Where shards made elsewhere are: a folder, a glob, a brace list or URLs, as a list of locations.

Braces, several lists joined by `::` and ${variables} are expanded by the webdataset library's own
function.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.errors import PackError
from shards.files import printable
from shards.storage.remote import checked_url

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class Source:
    """One shard: its location, and its name in the manifest.

    Attributes:
        location: Absolute path, or URL.
        file: Plain name, unique in the set.
    """

    location: str
    file: str

    @property
    def is_remote(self) -> bool:
        """True for a URL."""
        return "://" in self.location


def list_shards(text: str) -> list[Source]:
    """Return the shards that a text names, in order, each once.

    Raises:
        PackError: There are none, one is missing or compressed, or a URL's scheme is not known.
    """
    # Patterns may overlap; a shard twice would weigh twice.
    locations: dict[str, str] = {}
    for pattern in _expanded(text):
        for location, name in _locations(pattern).items():
            locations.setdefault(location, name)

    if not locations:
        raise PackError(f"{text}: no .tar file there; name a folder, a glob, a brace list or URLs.")
    if len(locations) > MAX_SHARDS:
        raise PackError(f"{text}: {len(locations):,} shards, more than {MAX_SHARDS:,}.")

    names = _names(list(locations.values()))
    return [Source(location, name) for location, name in zip(locations, names, strict=True)]


def _expanded(text: str) -> list[str]:
    if os.path.exists(text):  # noqa: PTH110  (Path takes a long list for an error)
        return [text]  # a folder may have braces in its name

    from webdataset.shardlists import expand_urls  # here: the library brings torch

    try:
        return list(expand_urls(text))
    except (AssertionError, ValueError) as error:
        raise PackError(f"{text}: cannot be expanded ({error}).") from error


def _locations(pattern: str) -> dict[str, str]:
    """Return the shards' locations, and what each is named by."""
    # webdataset would run it in a shell: a list of shards must not be able to do that.
    if pattern.startswith("pipe:"):
        raise PackError(f"{pattern}: a command is not run; name its files or URLs.")
    if "://" in pattern and not pattern.startswith("file://"):
        # As training asks it later: what it refuses must not be read for hours first.
        url = checked_url(pattern)
        return {_checked(url): url}

    path = Path(pattern.removeprefix("file://")).expanduser()
    # By os.path: a list of shards may be too long for a path, which Path takes for an error.
    if os.path.isdir(path):  # noqa: PTH112
        return _resolved(_tars(path))
    if os.path.isfile(path):  # noqa: PTH113
        return _resolved([path])

    # Path.glob takes no absolute pattern.
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
    if not matches:
        raise PackError(f"{pattern}: no such file; name a folder, a glob, a brace list or URLs.")
    return _resolved(Path(each) for each in matches if Path(each).is_file())


def _resolved(paths: Iterable[Path]) -> dict[str, str]:
    """Return the paths' names by their locations: absolute, as the index is read elsewhere."""
    # A link's own name: in a cache of the Hugging Face hub the file behind it is named by a hash.
    return {_checked(str(path.resolve())): _checked(str(path)) for path in paths}


def _tars(folder: Path) -> list[Path]:
    endings = (".tar", *COMPRESSED)
    # Sorted: the order of shards is part of the set's digest.
    # Hidden files are none: macOS puts a file ._a.tar beside each a.tar.
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings) and not path.name.startswith(".")
    )


def _checked(location: str) -> str:
    if location.lower().endswith(COMPRESSED):
        raise PackError(
            f"{location}: compressed, so its samples cannot be read in place; uncompress it first."
        )
    if printable(location) != location:
        raise PackError(
            f"{printable(location)}: its name is not UTF-8, so no manifest can hold it; rename it."
        )
    return location


def _names(locations: list[str]) -> list[str]:
    """Return a plain name for each location: its last part; numbered in front if two are alike."""
    last = [
        re.sub(r"[^A-Za-z0-9._+-]", "_", each.rstrip("/").rpartition("/")[2]) for each in locations
    ]
    # Names as they are where possible: messages then name files that users know.
    if len(set(last)) == len(last):
        return [_as_tar(name) for name in last]
    return [_as_tar(f"{number:06d}-{name}") for number, name in enumerate(last)]


def _as_tar(name: str) -> str:
    name = name.lstrip(".") or "shard"
    return name if name.endswith(".tar") else f"{name}.tar"
