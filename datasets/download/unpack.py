"""Unpack a zip or tar archive into the corpus root without trusting it.

Refused: names that lead outside, links and devices, more bytes than promised, too many files,
folders beside the expected one. Files are unpacked into a folder of their own and moved to their
places when all are there; after an interruption the files that are missing are unpacked.
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

from datasets.errors import DownloadError

MAX_FILES = 500_000  # COCO's largest archive has 123,403
MAX_NAME_BYTES = 255


@dataclass
class _Budget:
    """What the archive may still hold: files of one folder, up to a number of bytes."""

    top: str
    bytes: int
    files: int

    def take(self, name: str, size: int) -> None:
        """Check a regular file by its header.

        Raises:
            DownloadError: its name leads elsewhere, or it is one too many.
        """
        path = PurePosixPath(name)
        is_odd = any(mark in name for mark in "\\\0:")
        is_long = any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts)
        if is_odd or is_long or path.is_absolute() or ".." in path.parts:
            raise DownloadError(f"{name!r} leads outside, or is no plain name")
        if path.parts[:1] != (self.top,) or len(path.parts) < 2:
            raise DownloadError(f"{name!r} does not lie in {self.top}/")

        # Empty files cost no bytes, but millions of them fill a disk's table.
        if self.files == 0:
            raise DownloadError(f"it holds more than {MAX_FILES:,} files")
        if size > self.bytes:
            raise DownloadError(
                f"{name!r} makes it larger than the {self.bytes:,} bytes left to it"
            )
        self.files -= 1
        self.bytes -= size


def unpack(path: Path, root: Path, *, top: str, max_bytes: int) -> None:
    """Unpack an archive below the root.

    Args:
        path: a .zip or .tar file.
        root: where `top` goes; files of the same name that are there already are replaced.
        top: the one folder that the archive may hold.
        max_bytes: of all files together, unpacked.

    Raises:
        DownloadError: The archive is damaged or hostile; none of its files is at its place then.
    """
    # On the same file system as the root's, so that moving is renaming.
    staging = path.with_name(f"{path.name}.d")
    budget = _Budget(top, max_bytes, MAX_FILES)
    extract = _extract_zip if path.suffix == ".zip" else _extract_tar
    with _faults_in_words(path, staging):
        extract(path, staging, budget)

    if not (staging / top).is_dir():
        raise DownloadError(f"{path}: holds no {top}/, so it is not the official archive.")
    # Only when all is there: users take a folder that exists for whole.
    _move(staging / top, root / top)
    shutil.rmtree(staging)


def _extract_zip(path: Path, staging: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # Unix keeps a file's kind in the upper half; other systems write 0.
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DownloadError(f"{info.filename!r} is a link or a device")
            if info.is_dir():
                continue

            budget.take(info.filename, info.file_size)
            # zipfile reads no more bytes than the header promises, and checks their CRC.
            if not _is_there(staging / info.filename, info.file_size):
                archive.extract(info, staging)


def _extract_tar(path: Path, staging: Path, budget: _Budget) -> None:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise DownloadError(f"{info.name!r} is a link or a device")

            if info.isreg():
                budget.take(info.name, info.size)
                if not _is_there(staging / info.name, info.size):
                    archive.extract(info, staging, filter="data")
            # Otherwise tarfile's list grows with the archive.
            archive.members.clear()  # type: ignore[attr-defined]


def _is_there(target: Path, size: int) -> bool:
    """Return whether an earlier call has unpacked a file whole; a file cut short is smaller."""
    return target.is_file() and target.stat().st_size == size


@contextmanager
def _faults_in_words(path: Path, staging: Path) -> Iterator[None]:
    try:
        yield
    except (DownloadError, tarfile.FilterError) as error:
        # Nothing of a hostile archive stays.
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
            f"{path}: is damaged ({error}); remove it and rerun the same command."
        ) from error


def _move(source: Path, target: Path) -> None:
    """Move a tree to its place: at once if nothing is there, else file by file."""
    if not target.exists():
        source.rename(target)
        return
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _move(path, target / path.name)
        else:
            path.replace(target / path.name)
