"""Unpack a zip or tar archive into the corpus root without trusting a word of it.

Refused: names that lead outside, links and devices, more bytes than promised (counted as they come, so that
a header cannot lie), too many files, folders beside the expected one. Files arrive in a folder of their own
and are moved to their places when all are there; a killed call goes on with the files that are missing.
"""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from datasets.errors import DownloadError

MAX_FILES = 500_000  # COCO's largest archive has 123,403
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    """A regular file of an archive, not read yet."""

    name: str
    size: int  # as its header says


class _Zip:
    """A zip file's regular files in order, and their bytes."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def members(self) -> Iterator[tuple[_Member, IO[bytes]]]:
        with self._zip:
            for info in self._zip.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DownloadError(f"{info.filename!r} is a link or a device")
                if not info.is_dir():
                    with self._zip.open(info) as stream:
                        yield _Member(info.filename, info.file_size), stream


class _Tar:
    """The same of a tar file, which is read once from start to end."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed in members)

    def members(self) -> Iterator[tuple[_Member, IO[bytes]]]:
        with self._tar:
            for info in self._tar:
                if not (info.isreg() or info.isdir()) or info.issparse():
                    raise DownloadError(f"{info.name!r} is a link or a device")
                stream = self._tar.extractfile(info) if info.isreg() else None
                if stream is not None:
                    yield _Member(info.name, info.size), stream
                self._tar.members.clear()  # type: ignore[attr-defined]  # else it grows with the archive


def unpack(path: Path, root: Path, *, top: str, max_bytes: int) -> None:
    """Unpack an archive below the root.

    Args:
        path: a .zip or .tar file, trusted in nothing.
        root: where `top` goes; files of the same name that are there already are replaced.
        top: the one folder that the archive may hold.
        max_bytes: of all files together, unpacked.

    Raises:
        DownloadError: The archive is damaged or hostile; nothing of it is left at its place then.
    """
    staging = path.with_name(f"{path.name}.d")
    with _telling_faults(path, staging):
        left = max_bytes
        for count, (member, stream) in enumerate(_open(path).members()):
            if count == MAX_FILES:
                raise DownloadError(f"it holds more than {MAX_FILES:,} files")
            left = _copy(stream, member, staging / _checked(member.name, top), left)
    if not (staging / top).is_dir():
        raise DownloadError(f"{path}: holds no {top}/, so it is not the official archive.")
    _move(staging / top, root / top)
    shutil.rmtree(staging)


def _open(path: Path) -> _Zip | _Tar:
    return _Zip(path) if path.suffix == ".zip" else _Tar(path)


@contextmanager
def _telling_faults(path: Path, staging: Path) -> Iterator[None]:
    try:
        yield
    except DownloadError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise DownloadError(
            f"{path}: cannot be unpacked safely: {error}; it is not the official archive."
        ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        tarfile.TarError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DownloadError(
            f"{path}: is damaged ({error}); remove it and run the same line again."
        ) from error


def _checked(name: str, top: str) -> PurePosixPath:
    """A member's path, which stays below `top`."""
    path = PurePosixPath(name)
    odd = any(mark in name for mark in "\\\0:") or any(
        len(part.encode()) > 255 for part in path.parts
    )
    if odd or path.is_absolute() or ".." in path.parts:
        raise DownloadError(f"{name!r} leads outside, or is no plain name")
    if path.parts[:1] != (top,) or len(path.parts) < 2:
        raise DownloadError(f"{name!r} does not lie in {top}/")
    return path


def _copy(stream: IO[bytes], member: _Member, target: Path, left: int) -> int:
    """Write one file, where it is not there already, and return the bytes that may still come."""
    if member.size > left:
        raise DownloadError(
            f"{member.name!r} makes it larger than the {left:,} bytes that are left to it"
        )
    if target.is_file() and target.stat().st_size == member.size:
        return left - member.size
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}"[:200] + ".tmp")
    copied = 0
    with temporary.open("wb") as out:
        while block := stream.read(COPY_BYTES):
            copied += len(block)
            if copied > member.size:
                raise DownloadError(f"{member.name!r} is larger than its header says")
            out.write(block)
    if copied < member.size:
        raise EOFError(f"{member.name!r} is cut off")
    temporary.replace(target)
    return left - copied


def _move(source: Path, target: Path) -> None:
    """Move a tree to its place: at once where nothing is there, else file by file."""
    if not target.exists():
        source.rename(target)
        return
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _move(path, target / path.name)
        else:
            path.replace(target / path.name)
