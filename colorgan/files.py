"""Files: written whole or not at all, folders owned by one process, bounded reads of plain data.

What is read here may have been written by somebody else: it is bounded, and of the expected type or
absent.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from colorgan.errors import UsageError

MAX_TEXT_BYTES = 8 << 20
MAX_NAME = 120  # characters of a name on the page
LOCK = ".lock"
MAX_LOCK_BYTES = 4096
# Written by huggingface_hub, and by users.
CARD = "README.md"
RUN = "a run"
# What a folder is, by a file that others have not.
OUTPUTS = {
    "recipe.yaml": RUN,
    "checkpoints": RUN,
    "steps": "a study",
    "study.json": "a study",
    "model.safetensors": "a model",
    "scores.json": "an evaluation",
    "probe.json": "a probe",
    "report.md": "a report",
    "demo.js": "a demo page",
    "manifest.json": "a packed set",
}
# What outputs that are replaced whole are made of, by the same files: an older output's parts go
# with it, and all else that lies in its folder stays.
PARTS = {
    "model.safetensors": ("config.json", "model.safetensors", "model.onnx", "validation.png"),
    "scores.json": (
        "scores.json",
        "per_image.safetensors",
        "pictures.png",
        "best",
        "worst",
        "coloured",
        "best.png",
        "worst.png",
        "coloured.png",
    ),
    "report.md": ("report.md", "report.html", "*.png"),
    "demo.js": ("demo.js", "index.html", "README.txt", "runtime", "*-[0-9][0-9][0-9].js"),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends well.

    Readers see the old file or the new one, never a part, also after a power cut. After an error
    the old file is as it was and the temporary one is gone.

    Raises:
        OSError: The file could not be written or renamed.
    """
    # Beside the target, as a rename is atomic within one file system; with host and process, as
    # several machines may write here at a time.
    partial = path.with_name(f".{_beginning(path.name)}.{_process_name()}.partial")
    try:
        yield partial
        # Before the rename: after a power cut, a new name with old or no bytes would be the worst
        # of both.
        sync(partial)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _beginning(name: str) -> str:
    """Return a name cut so that more fits behind it.

    It has at most 255 bytes, and a character up to four of them.
    """
    return os.fsdecode(os.fsencode(name)[:100])


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def exchange(first: Path, second: Path) -> None:
    """Let two paths of one file system change their names, at once where the system can.

    Linux does it in one step (renameat2). Where it cannot (some network file systems), `second` is
    missing for a moment.

    Raises:
        OSError: A path does not exist, or may not be renamed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    # Asked of the C library, as Python has no call for it.
    if hasattr(library, "renameat2"):
        at_here, flag_exchange = -100, 2
        if not library.renameat2(
            at_here, os.fsencode(first), at_here, os.fsencode(second), flag_exchange
        ):
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))

    # Three renames: for a moment there is none, but never half of one.
    aside = second.with_name(f".{_beginning(second.name)}.{_process_name()}.old")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def what_is(folder: Path) -> str:
    """Return what a folder holds (`a run`, `a model`), by the file that each kind has; "" if none.

    A run folder may also hold an evaluation's files, so it is looked for first.
    """
    kinds = (what for marker, what in OUTPUTS.items() if (folder / marker).exists())
    return next(kinds, "")


def check_output(out: Path, marker: str) -> None:
    """Refuse to write an output over something else than an older output of its kind.

    Args:
        out: The folder to write: new, empty, or with an older output.
        marker: The file that outputs of this kind have.

    Raises:
        UsageError: It is a file, or holds something else; names what.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder")
    if not out.exists() or not any(out.iterdir()):
        return

    held = what_is(out)
    if held != OUTPUTS[marker]:
        raise UsageError(
            f"{out} holds {held or 'other files'} and is not replaced by {OUTPUTS[marker]}: choose "
            "another --out"
        )


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it becomes `out` at once when the block ends well.

    After an error `out` is as it was. Of an older folder a card (README.md) stays, and all that is
    no part of an output (`PARTS`): notes, another output, a run.

    Raises:
        OSError: The folder could not be written or renamed.
    """
    out = out.resolve()
    # Beside the target: a rename is atomic within one file system only. Of this process: two may
    # write one output, and the later one stays.
    partial = _staging(out, _process_name())
    _remove_abandoned(out)
    partial.mkdir(parents=True)
    try:
        yield partial
        with _one_at_a_time(out.parent):
            _replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _staging(out: Path, process: str) -> Path:
    return out.with_name(f".{_beginning(out.name)}.{process}.partial")


def _remove_abandoned(out: Path) -> None:
    """Remove what killed processes of this machine have left beside an output, and this one's."""
    beginning = _staging(out, f"{socket.gethostname()}-").name.removesuffix(".partial")
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        process = path.name.removeprefix(beginning).removesuffix(".partial")
        if path.name != f"{beginning}{process}.partial" or not process.isdigit():
            continue
        if int(process) == os.getpid() or not Path("/proc", process).exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """While open, other processes that ask for the same folder wait, where the disk knows locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace_folder(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out` at once, with what stays of an older folder."""
    if not out.exists():
        partial.rename(out)
        return

    parts = [part for marker, each in PARTS.items() if (out / marker).exists() for part in each]
    for path in out.iterdir():
        is_part = any(fnmatchcase(path.name, part) for part in parts)
        if path.name == CARD or not (is_part or (partial / path.name).exists()):
            _link(path, partial / path.name)
    # Swapped, not removed and renamed: readers see the old folder or the new one, never none.
    exchange(partial, out)
    shutil.rmtree(partial)


def _link(path: Path, copy: Path) -> None:
    """Give a file or folder a second place, without copying bytes where the disk can.

    Not moved: a kill at any moment leaves one of the two folders whole.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, copy, symlinks=True, copy_function=_link_file)
    else:
        copy.unlink(missing_ok=True)
        _link_file(path, copy)


def _link_file(path: Path | str, copy: Path | str) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    # File systems without hard links.
    except OSError:
        shutil.copy2(path, copy, follow_symlinks=False)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename never precedes its data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes from writing in it while the block runs.

    The lock ends with the process, however it ends. Its file names the owner.

    Raises:
        UsageError: Another process owns the folder; names that process and its host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    # Released by whichever thread leaves the context; generators may move between threads.
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"{folder} is in use by another process{_owner_text(path)}: "
            "wait until it has ended, or choose another folder (--run)"
        ) from None

    try:
        path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):
            # Emptied, not removed: another process may hold the file open and be about to lock it.
            os.truncate(path, 0)
        lock.release()


def _owner_text(path: Path) -> str:
    """Return ` (process 12 on host a)`, or an empty string where the lock's file does not tell."""
    try:
        with path.open("rb") as file:
            owner = mapping(json.loads(file.read(MAX_LOCK_BYTES)))
        return f" (process {int(owner['process'])} on host {short(owner['host'])})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than 8 MiB, or not UTF-8.
    """
    with path.open("rb") as file:
        # One byte more than is allowed: sizes from `stat` may change before the read.
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError("too large")
    return data.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if it cannot be read or is not an object."""
    try:
        return mapping(json.loads(read_text(path)))
    except (OSError, ValueError, RecursionError):
        return {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, whole or not at all; NaN is not allowed."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping, or {}."""
    return value if isinstance(value, dict) else {}


def entries(value: Any, most: int) -> list[Any]:
    """Return a list's first entries, or []."""
    return value[:most] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Return a finite number, or None; True and False are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def numbers(values: Any) -> dict[str, float]:
    """Return the entries of a mapping that are finite numbers."""
    pairs = ((str(name), number(value)) for name, value in mapping(values).items())
    return {name: value for name, value in pairs if value is not None}


def whole(value: Any) -> int | None:
    """Return a whole number of at least 0, or None."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    # Python's integers have no bound; NumPy's and those of progress bars do.
    return value if 0 <= value < 1 << 62 else None


def short(value: Any, most: int = MAX_NAME) -> str:
    """Return text of bounded length; "" for None."""
    text = "" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
