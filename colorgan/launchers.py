"""What started this process: accelerate, torchrun, DeepSpeed or srun, and what follows from it.

`adopt_launcher` gives every rank the same variables, whatever has started it. `end_with_launchers`
ends this process when a launcher above it has died, so that no rank is left behind.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from colorgan.errors import ExitStatus

# Words of the command lines of launchers: their scripts and modules, and those of this project.
_LAUNCHERS = re.compile(
    r"(^|/)(accelerate|torchrun|deepspeed)(\.exe)?$|^torch\.distributed\.(run|launch)$"
    r"|^accelerate\.commands\.launch$|^deepspeed\.launcher\.\w+$|(^|/)study\.py$|/colorgan$"
)
_WORDS_LOOKED_AT = 5  # of a command line: python -m MODULE, python SCRIPT
_POLL_S = 0.5
# After the launcher's death: in general, and while a checkpoint is being written.
STOP_WITHIN_S = 12.0
SAVE_WITHIN_S = 55.0


@dataclass(frozen=True)
class Process:
    """A process of this machine; `started`, in ticks since boot, tells it from one with its id."""

    id: int
    started: int
    words: tuple[str, ...]

    @property
    def is_alive(self) -> bool:
        """True while this very process runs; a zombie does not."""
        state, _, started = _stat(self.id)
        return started == self.started and state not in ("Z", "X", "")


def adopt_launcher(environment: MutableMapping[str, str] | None = None) -> None:
    """Set torchrun's variables from those of srun or DeepSpeed's launcher, if these started us.

    Called first by every command. Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT.
    """
    env = os.environ if environment is None else environment

    if "LOCAL_SIZE" in env and "RANK" in env:  # DeepSpeed's launcher
        env.setdefault("LOCAL_WORLD_SIZE", env["LOCAL_SIZE"])

    tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
    # torchrun inside srun has set its own: these count.
    if "RANK" in env or "WORLD_SIZE" in env or not tasks.isdigit() or int(tasks) < 2:
        return

    env["RANK"] = env.get("SLURM_PROCID", "0")
    env["WORLD_SIZE"] = tasks
    env["LOCAL_RANK"] = env.get("SLURM_LOCALID", "0")
    env["LOCAL_WORLD_SIZE"] = str(_tasks_on_this_node(env))
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    env.setdefault("MASTER_ADDR", first_node(nodes) or "127.0.0.1")
    step = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
    # From the step's name: all tasks compute the same port, two steps of one node hardly ever.
    env.setdefault("MASTER_PORT", str(20_000 + zlib.crc32(step.encode()) % 10_000))


def wants_cpu(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether the profile is a CPU twin: `use_cpu: true` or `gpu_ids: "-1,-1"`.

    accelerate passes `use_cpu` on only when it starts one process; it always passes `gpu_ids`, as
    the visible devices.
    """
    env = os.environ if environment is None else environment
    if env.get("ACCELERATE_USE_CPU", "false").lower() == "true":
        return True
    # An empty list hides all GPUs just as -1 does.
    return env.get("CUDA_VISIBLE_DEVICES", "0")[:2] in ("", "-1")


def first_node(nodes: str) -> str:
    """Return the first host of SLURM's list (`gpu[03-05,9],login`: `gpu03`)."""
    first = re.match(r"([^,\[]*)(?:\[([0-9]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in first.groups()) if first else ""


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    """Read `2(x3),1`: two tasks on each of three nodes, one on the fourth."""
    node = int(env.get("SLURM_NODEID", "0"))
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node < len(counts) else 1


def launchers_above() -> list[Process]:
    """Return the launchers among the processes above this one, the nearest first."""
    found = []
    process = os.getppid()

    # Up to, not including, init: what it starts is nobody's launcher.
    while process > 1:
        _, parent, started = _stat(process)
        words = _words(process)
        if any(_LAUNCHERS.search(word) for word in words[:_WORDS_LOOKED_AT]):
            found.append(Process(process, started, words))
        process = parent

    return found


_SAVES: set[object] = set()  # under way in this process, in any of its threads


@contextmanager
def saving() -> Iterator[None]:
    """While open, the process counts as writing a checkpoint."""
    token = object()
    _SAVES.add(token)
    try:
        yield
    finally:
        _SAVES.discard(token)


def end_with_launchers(*, exit_now: Callable[[int], None] = os._exit) -> None:
    """Watch the launchers above this process; when one has died, stop as after SIGTERM.

    A process that still runs `STOP_WITHIN_S` later is ended, or `SAVE_WITHIN_S` later while it
    writes a checkpoint. Without a launcher nothing is watched: what a shell starts may outlive it.

    Args:
        exit_now: Ends the process; for tests.
    """
    launchers = launchers_above()
    if not launchers:
        return

    def watch() -> None:
        while all(launcher.is_alive for launcher in launchers):
            time.sleep(_POLL_S)

        # As a user would stop it: the loop saves at the end of its step.
        os.kill(os.getpid(), signal.SIGTERM)
        died = time.monotonic()
        while time.monotonic() - died < (SAVE_WITHIN_S if _SAVES else STOP_WITHIN_S):
            time.sleep(_POLL_S)
        # A rank stuck in a collective never comes back to the loop; its launcher can no longer end
        # it.
        exit_now(ExitStatus.LOST_RANK)

    threading.Thread(target=watch, name="launchers", daemon=True).start()


# Waits until the processes named behind the first word have ended, then prints that word.
_PRINT_LAST = """
sentence=$1; shift
tries=0
while [ $tries -lt 600 ]; do
    alive=
    for process in "$@"; do
        { read -r line <"/proc/$process/stat"; } 2>/dev/null || continue
        case ${line##*) } in Z* | X*) ;; *) alive=1 ;; esac
    done
    [ -n "$alive" ] || break
    tries=$((tries + 1)); sleep 0.1
done
printf '%s\\n' "$sentence" >&2
"""


def print_after_launchers(sentence: str) -> bool:
    """Print to standard error when the launchers above have ended; return False if it cannot.

    A launcher prints some forty lines about a rank that fails; the reason is to come after them. A
    shell of its own waits for at most a minute. Done only where standard error is read to its end
    (a terminal, a pipe); not below SLURM, and not where a launcher is a container's first process:
    there what is left ends with it.
    """
    launchers = launchers_above()
    # There the log of each rank is a file, and what is left of a job is killed.
    inside = "SLURM_JOB_ID" in os.environ or "COLORGAN_STATUS_DIR" in os.environ
    if not launchers or inside or _is_first_process(launchers[-1]) or not _is_read_to_its_end(2):
        return False

    ids = [str(launcher.id) for launcher in launchers]
    try:
        subprocess.Popen(
            ["/bin/sh", "-c", _PRINT_LAST, "sh", sentence, *ids],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    return True


def _is_read_to_its_end(descriptor: int) -> bool:
    return os.isatty(descriptor) or stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _is_first_process(launcher: Process) -> bool:
    return launcher.id == 1 or _stat(launcher.id)[1] in (0, 1)


def _stat(process: int) -> tuple[str, int, int]:
    """Return state, parent and start of a process; ("", 0, 0) if it is gone."""
    with suppress(OSError, ValueError, IndexError):
        # From the last bracket on: a program's name may hold spaces and brackets.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[1]), int(fields[19])
    return "", 0, 0


def _words(process: int) -> tuple[str, ...]:
    try:
        data = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in data.split(b"\0") if word)
