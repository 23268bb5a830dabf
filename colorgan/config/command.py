"""How a command ends: one sentence and an exit status.

`run_command` is the last line of each script in launcher/. It needs no heavy import, so that
mistakes in the settings are reported before torch is loaded.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from colorgan.errors import ColorganError, ExitStatus
from colorgan.launchers import adopt_launcher, end_with_launchers, print_after_launchers

# Faults of the disk and of the user's paths. Others (a reset connection) keep their traceback.
_PATH_FAULTS = (
    "EACCES",
    "EPERM",
    "EROFS",
    "ENOSPC",
    "EDQUOT",
    "EFBIG",
    "EIO",
    "ESTALE",
    "EMFILE",
    "ENFILE",
    "ENOENT",
    "ENOTDIR",
    "EISDIR",
    "EEXIST",
    "ENOTEMPTY",
    "ENAMETOOLONG",
    "ELOOP",
)

# torchrun stops its other ranks 0.1 s after the first has failed, DeepSpeed's launcher after 1 s.
_OTHER_RANKS_WAIT_S = 3.0

# Commands that run on several ranks: a launcher starts them.
RANKED = ("pretrain", "finetune", "evaluate", "probe", "embed")

_TRAINING = "Lower --batch.micro_batch_size, or use --batch.precision bf16"
_BATCHES = "Lower --batch_size"
# What needs less of a GPU's memory, by command; others take one photo at a time.
_LESS_MEMORY = {
    "pretrain": _TRAINING,
    "finetune": _TRAINING,
    "evaluate": _BATCHES,
    "embed": _BATCHES,
    "probe": _BATCHES,
}

_SCRIPT = re.compile(r"(?:python |accelerate launch )?launcher/(\w+)\.py")

Main = Callable[[list[str]], int | None]


def command_text(name: str) -> str:
    """Return a command as the user types it: `python launcher/NAME.py`, or `colorgan NAME`.

    Args:
        name: The script's name in launcher/, without .py.
    """
    if os.environ.get("COLORGAN_CONSOLE"):  # set by the console command
        return f"colorgan {name}"

    return f"{'accelerate launch' if name in RANKED else 'python'} launcher/{name}.py"


def run_command(main: Main, *errors: type[Exception]) -> NoReturn:
    """Run a command and exit with its status (`ExitStatus`).

    An error of `colorgan` or of the trees in `errors` is printed as one sentence; any other keeps
    its traceback.

    Args:
        main: Takes the words after the script's name; returning None means status 0.
        errors: Error classes of other packages whose messages are sentences for the user.
    """
    adopt_launcher()
    end_with_launchers()
    # A name that the terminal's encoding lacks is shown escaped, not a reason to fail at the end.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    # A notebook's value names a module that other environments lack: `import matplotlib` fails.
    os.environ["MPLBACKEND"] = "Agg"

    try:
        status = _status_of(main, errors)
    except Exception:
        if _world_size() == 1:
            raise
        traceback.print_exc()
        status = ExitStatus.FAULT

    _leave_status(status)
    if status == ExitStatus.STOPPED:
        # Whoever asks repeats the signal until this process has ended; the interpreter's end takes
        # handlers away, and one more signal would then replace the status.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    if status and _world_size() > 1:
        # Leaving in order waits for the other ranks (NCCL), which wait for this one: leave at once.
        # The launcher then ends the others.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    raise SystemExit(status)


def _status_of(main: Main, errors: tuple[type[Exception], ...]) -> int:
    """Run `main`; return its exit status, after printing the sentence of an error."""
    explained: tuple[type[Exception], ...] = (ColorganError, *errors)

    try:
        # Flushed inside: a reader that has gone away shows here, not at the interpreter's end.
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Or the interpreter's own flush at exit would fail once more, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitStatus.CLOSED_PIPE
    except KeyboardInterrupt:
        print_error("Interrupted.")
        return ExitStatus.INTERRUPTED
    except explained as error:
        print_error(f"{type(error).__name__}: {error}")
        return getattr(error, "exit_status", ExitStatus.MISTAKE)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in _PATH_FAULTS:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print_error(f"{type(error).__name__}: {where}{error.strerror}.")
        return ExitStatus.MISTAKE
    except RuntimeError as error:
        # By name, so that torch need not be imported to ask. Where another process fills the GPU,
        # CUDA itself says so.
        text = str(error).partition("\n")[0]
        if type(error).__name__ != "OutOfMemoryError" and "CUDA error: out of memory" not in text:
            raise
        advice = _LESS_MEMORY.get(Path(sys.argv[0]).stem, "Choose --device cpu")
        print_error(f"OutOfMemoryError: {text} {advice}; nvidia-smi shows what else uses the GPU.")
        return ExitStatus.MISTAKE

    return status


def print_error(sentence: str) -> None:
    """Print to standard error; a failure that all ranks have in common is printed once.

    Ranks after the first wait: launchers end them within a second of the first failure. If this
    rank is still alive after the wait, the first rank has not failed, and this one prints.
    """
    if not is_first_local_rank():
        time.sleep(_OTHER_RANKS_WAIT_S)
        sentence = f"[rank {os.environ.get('RANK', os.environ['LOCAL_RANK'])}] {sentence}"

    sentence = _with_console_commands(sentence)
    sys.stdout.flush()
    if not print_after_launchers(sentence):
        print(sentence, file=sys.stderr, flush=True)


def _with_console_commands(sentence: str) -> str:
    """Return a sentence with `colorgan pack` for `python launcher/pack.py`, if so started."""
    if not os.environ.get("COLORGAN_CONSOLE"):
        return sentence
    return _SCRIPT.sub(r"colorgan \1", sentence)


def is_first_local_rank() -> bool:
    """Return whether this process is the first rank of its machine, or the only process."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _world_size() -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def _leave_status(status: int) -> None:
    """Write the status into COLORGAN_STATUS_DIR: launchers turn every failure into status 1."""
    folder = os.environ.get("COLORGAN_STATUS_DIR")
    if folder:
        with suppress(OSError):
            Path(folder, f"rank-{os.environ.get('RANK', '0')}").write_text(f"{int(status)}\n")
