"""How a verb ends: one sentence and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from colorgan.errors import ColorganError

# Faults of the disk and of the user's paths; others (a reset connection, say) keep their traceback.
_PATH_FAULTS = (
    *("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ESTALE", "EMFILE", "ENFILE"),
    *("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP"),
)


# torchrun stops its other ranks 0.1 s after the first has failed, DeepSpeed's launcher after 1 s.
_OTHER_RANKS_WAIT_S = 3.0


def run_command(main: Callable[[list[str]], int | None], *errors: type[Exception]) -> NoReturn:
    """Runs a verb and exits: 0; an error's status (2: a mistake), one sentence; 130 for Ctrl-C; else a traceback.

    Args:
        main: Takes the words after the script's name; None is status 0.
        errors: Error trees of other packages to tell in one sentence, beside `ColorganError`.
    """
    told: tuple[type[Exception], ...] = (ColorganError, *errors)
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141  # as a shell shows a process ended by SIGPIPE
    except KeyboardInterrupt:
        _tell("Interrupted.")
        status = 130
    except told as error:
        _tell(f"{type(error).__name__}: {error}")
        status = getattr(error, "exit_status", 2)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in _PATH_FAULTS:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _tell(f"{type(error).__name__}: {where}{error.strerror}.")
        status = 2
    raise SystemExit(status)


def _tell(sentence: str) -> None:
    """Prints to stderr; a rank other than the first waits, so that what fails on all ranks is told once.

    Launchers end the other ranks within a second of the first failure; if this rank still lives after the
    wait, the first rank has not failed, and this one speaks.
    """
    if not _is_first_local_rank():
        time.sleep(_OTHER_RANKS_WAIT_S)
        sentence = f"[rank {os.environ.get('RANK', os.environ['LOCAL_RANK'])}] {sentence}"
    print(sentence, file=sys.stderr, flush=True)


def _is_first_local_rank() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
