"""Notice a rank that hangs or is gone, write every rank's report, end the processes.

    open_run -> fit (notes each point) -> <run>/hangs/<start>/rank-*.json, summary.txt -> status 76

The main thread notes points, which costs under a microsecond. A thread of each rank checks that
they move on, and writes the last one to a small beat file, so that the others know where a rank was
that no longer answers. It needs no collective call: reports, beats and summary go through the
shared file system, also when rank 0 is the one that hangs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO, TypeVar

from colorgan.distributed.ranks import Ranks
from colorgan.errors import ExitStatus
from colorgan.files import replacing
from colorgan.runs.hang_reports import SUMMARY, RankStatus, read_status, summary_text

TRIPPED = ".tripped"
ENDED = ".ended"  # a rank has ended with an error: its beat says which and why
BEAT_BYTES = 4096
MAX_ERROR = 400  # characters of an error in a beat
LOOK_S = 1.0  # between two looks whether a peer has ended
# A main thread that notices a lost peer itself (gloo) raises within this time, with a better
# sentence.
LOST_GRACE_S = 5.0
T = TypeVar("T")


class Point(NamedTuple):
    """A place in the program that a rank has reached.

    `number` counts the points before it and is the same on all ranks.
    """

    name: str
    images_seen: int
    number: int
    batches: tuple[Any, ...] = ()


class Process(NamedTuple):
    """A rank's process; `started` as in `process_start`."""

    rank: int
    host: str
    process: int
    started: int


class Watchdog:
    """Watches this rank while open. Entered and left on all ranks.

    Args:
        folder: Where reports go, one folder per start.
        ranks: This process among the ranks.
        timeout_s: All ranks have ended this long after one of them stopped moving. It trips a
            little earlier, so that reports can be written before the process group's own timeout of
            the same length.
        global_batch_size: Images per step, to count steps.
        end: Ends the process; for tests.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        timeout_s: float,
        global_batch_size: int = 1,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.folder, self._ranks, self._end = folder, ranks, end
        self._batch = global_batch_size
        # A fifth of the time, for reports that go through a shared disk.
        self._margin_s = min(60.0, max(1.0, 0.2 * timeout_s))  # for the reports
        self._patience_s = max(1.0, timeout_s - self._margin_s)
        self._beat_s = min(5.0, max(0.1, timeout_s / 40))
        self._look_s = min(LOOK_S, self._beat_s)
        self._point = Point("start", 0, 0)
        self._collective = "none yet"
        self._idle_s = 0.0
        self._error = ""
        self._closed = threading.Event()
        self._peers: list[Process] = []  # the other ranks of this machine
        self._thread: threading.Thread | None = None
        self._stacks: TextIO | None = None
        self._beat = -1

    def note(
        self,
        name: str,
        images_seen: int,
        batches: Iterable[Any] | None = None,
        *,
        collective: bool = False,
    ) -> None:
        """Note that the main thread has reached a point: under a microsecond, no system call.

        Args:
            name: The same words at the same place on all ranks; noted again, it counts as moving.
            images_seen: By the run.
            batches: This rank's micro-batches of the step, for their positions in the order; None
                keeps the last ones.
            collective: All ranks wait for each other here.
        """
        before = self._point
        # The same point noted again is progress (a batch of many) but no new place.
        moved = name != before.name or images_seen != before.images_seen
        kept = before.batches if batches is None else tuple(batches)
        self._point = Point(name, images_seen, before.number + moved, kept)
        if collective:
            self._collective = f"{name} at {images_seen} images"

    def moving(self, items: Iterable[T], name: str, images_seen: int) -> Iterator[T]:
        """Yield `items`, each one noted as moving."""
        for item in items:
            self.note(name, images_seen)
            yield item

    def __enter__(self) -> Watchdog:
        # At a breakpoint nothing moves, and rightly so.
        if sys.gettrace() is not None:  # a debugger steps through the run
            return self

        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        self.folder = self.folder / self._ranks.gather(name)[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Opened once and kept: a disk that is full later still takes a rewrite of the same bytes.
        self._beat = os.open(self._beat_path(self._ranks.rank), os.O_RDWR | os.O_CREAT, 0o644)
        self._write_beat()
        self._stacks = self._path("stacks.txt").open("w")
        me = Process(
            self._ranks.rank, socket.gethostname(), os.getpid(), process_start(os.getpid())
        )
        # Of this machine only: another machine's processes cannot be looked up.
        self._peers = [
            peer for peer in self._ranks.gather(me) if peer.host == me.host and peer != me
        ]

        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None or self._stacks is None:
            return

        self._closed.set()
        self._thread.join()
        self._thread = None
        faulthandler.cancel_dump_traceback_later()
        if value is not None:
            self._error = f"{type(value).__name__}: {value}"[:MAX_ERROR]
            with suppress(OSError):
                self._write_beat()
                (self.folder / ENDED).touch()
        self._stacks.close()
        os.close(self._beat)
        self._path("stacks.txt").unlink(missing_ok=True)

        # After an error the others read where this rank was, and why it ended.
        if value is None or self._ranks.world_size == 1:
            self._beat_path(self._ranks.rank).unlink(missing_ok=True)
            for folder in (self.folder, self.folder.parent):
                with suppress(OSError):  # not empty, or gone
                    folder.rmdir()

    def _watch(self) -> None:
        """Run in the watchdog's thread: beat, and look at this rank and the others."""
        seen, then = self._point, time.monotonic()
        beat_at = then
        lost_since: float | None = None
        while not self._closed.wait(self._look_s):
            now = time.monotonic()
            # A process that was suspended (SIGSTOP, scontrol suspend) has not aged meanwhile.
            self._idle_s += min(now - then, 2 * self._look_s)
            then = now
            if self._point is not seen:
                seen, self._idle_s = self._point, 0.0

            if now - beat_at >= self._beat_s:
                beat_at = now
                with suppress(OSError):  # a full disk
                    self._write_beat()

            assert self._stacks is not None
            # Only a thread of C can write the stacks when the interpreter itself is stuck.
            faulthandler.dump_traceback_later(self._patience_s + self._margin_s, file=self._stacks)

            if self._idle_s > self._patience_s or (self.folder / TRIPPED).exists():
                self._report_and_end()
                return

            # Lost for a while, not at a glance: a rank that ends in order removes its beat a moment
            # later.
            lost_since = (lost_since or now) if self._rank_is_lost() else None
            if lost_since is not None and now - lost_since > LOST_GRACE_S:
                self._end_after_lost_rank()
                return

    def status(self) -> dict[str, Any]:
        """Return where this rank is, as JSON data."""
        point = self._point
        positions = [int(p) for batch in point.batches for p in batch.positions_B.tolist()]
        samples = [int(s) for batch in point.batches for s in batch.sample_ids_B.tolist()]
        return {
            "rank": self._ranks.rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": process_start(os.getpid()),
            "device": self._ranks.device.type,
            "point": point.name,
            "number": point.number,
            "step": point.images_seen // self._batch,
            "images_seen": point.images_seen,
            "sample_positions": [min(positions), max(positions)] if positions else [],
            "samples": samples[:64],
            "last_collective": self._collective,
            "idle_s": round(self._idle_s, 1),
            "error": self._error,
        }

    def _write_beat(self) -> None:
        status = {key: value for key, value in self.status().items() if key != "samples"}
        text = json.dumps({**status, "time": time.time()}).encode()
        # Padded to one size: a shorter beat must not leave the end of the longer one before it.
        os.pwrite(self._beat, text.ljust(BEAT_BYTES), 0)

    def _end_after_lost_rank(self) -> None:
        """End this process, whose main thread still waits for a rank that is gone (NCCL)."""
        peers = self.lost_ranks()
        print(lost_rank_text(peers), file=sys.stderr, flush=True)
        self._end(ExitStatus.LOST_RANK)

    def _report_and_end(self) -> None:
        """Report, wait for the others' reports, write the summary, end all processes."""
        deadline = time.monotonic() + self._margin_s
        with suppress(OSError):
            # A file that all ranks look for: the others report at once, though their own clocks are
            # behind.
            (self.folder / TRIPPED).touch()
            report = {**self.status(), "time": time.time(), "stacks": python_stacks()}
            with replacing(self._path("json")) as path:
                path.write_text(json.dumps(report, indent=1))

        silent = self._wait_for_reports(deadline - 0.5 * self._margin_s)
        reported = [rank for rank in range(self._ranks.world_size) if rank not in silent]
        # The lowest rank that answers writes: rank 0 may be the one that hangs.
        if not reported or self._ranks.rank == reported[0]:
            self._write_summary()

        until = deadline - 0.2 * self._margin_s
        while not (self.folder / SUMMARY).exists() and time.monotonic() < until:
            time.sleep(0.02)

        for rank in silent:
            peer = read_status(self._beat_path(rank))
            if peer is not None:
                # Killed last: its memory and GPU would stay taken by a process that nobody waits
                # for.
                end_process(peer)
        self._end(ExitStatus.HUNG)

    def _wait_for_reports(self, until: float) -> list[int]:
        """Return the ranks that have left no report by then."""
        silent = list(range(self._ranks.world_size))
        while silent and time.monotonic() < until:
            time.sleep(0.02)
            silent = [rank for rank in silent if not self._path("json", rank).exists()]
        return silent

    def _write_summary(self) -> None:
        text = summary_text(self.statuses(), self._patience_s)
        # On a full disk the summary is still printed.
        with suppress(OSError), replacing(self.folder / SUMMARY) as path:
            path.write_text(text)
        print(f"{text}\nReports: {self.folder}", file=sys.stderr, flush=True)

    def statuses(self) -> list[RankStatus | None]:
        """Return where every rank is, from its report or else its last beat."""
        ranks = range(self._ranks.world_size)
        return [
            read_status(self._path("json", rank)) or read_status(self._beat_path(rank))
            for rank in ranks
        ]

    def _rank_is_lost(self) -> bool:
        """Return whether another rank has ended early; one look costs a few system calls.

        A rank that ends well removes its beat first.
        """
        if (self.folder / ENDED).exists():
            return bool(self.lost_ranks())
        return any(
            process_start(peer.process) != peer.started and self._beat_path(peer.rank).exists()
            for peer in self._peers
        )

    def lost_ranks(self) -> list[RankStatus]:
        """Return the other ranks that have ended early, as of their last beat.

        A process of this machine is looked up; one of another machine has left its error.
        """
        lost = []
        for rank in range(self._ranks.world_size):
            peer = None if rank == self._ranks.rank else read_status(self._beat_path(rank))
            if peer is None:
                continue
            here = peer.host == socket.gethostname()
            if peer.error or (here and not is_alive(peer)):
                lost.append(peer)
        return lost

    def _path(self, ending: str, rank: int | None = None) -> Path:
        return self.folder / f"rank-{self._ranks.rank if rank is None else rank:05d}.{ending}"

    def _beat_path(self, rank: int) -> Path:
        return self.folder / f".beat-{rank:05d}"


def lost_rank_text(peers: Iterable[RankStatus], detail: str = "") -> str:
    """Return the sentence that names ranks that ended, and how to go on."""
    names = []
    for peer in peers:
        why = f" with {peer.error}" if peer.error else ""
        names.append(
            f"rank {peer.rank} (process {peer.process} on {peer.host}) ended{why}, last at "
            f"'{peer.point}'"
        )
    who = ", ".join(names) or "another rank cannot be reached"
    reason = f": {detail}" if detail else ""
    return f"{who}{reason}; rerunning the command resumes from the last checkpoint"


def python_stacks() -> dict[str, list[str]]:
    """Return the Python stack of every thread by the thread's name, innermost line last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {}
    for ident, frame in sys._current_frames().items():
        summary = traceback.extract_stack(frame)
        lines = [f"{each.filename}:{each.lineno} {each.name}: {each.line}" for each in summary]
        stacks[names.get(ident, f"thread {ident}")] = lines
    return stacks


def process_start(process: int) -> int:
    """Return when a process of this machine started, in clock ticks since boot.

    It is 0 if the process has ended or is unknown.
    """
    try:
        # Behind the last bracket: a program's name may hold spaces and brackets.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_alive(peer: RankStatus) -> bool:
    """Return whether a rank's process still runs; only for ranks of this machine.

    A process id may have been given to another process since: the start time tells them apart.
    """
    return process_start(peer.process) == peer.started != 0


def end_process(peer: RankStatus) -> None:
    """Kill a rank of this machine that does not answer, so that its memory is released."""
    if peer.host == socket.gethostname() and is_alive(peer) and peer.process != os.getpid():
        with suppress(OSError):
            os.kill(peer.process, signal.SIGKILL)
