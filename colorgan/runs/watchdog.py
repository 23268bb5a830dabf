"""Notices a rank that hangs, leaves every rank's report in the run folder, and ends the processes.

    Run (opens it) -> fit (notes each point reached) -> <run>/hangs/<start>/rank-00001.json ... summary.txt -> status 76

The main thread notes points, which costs under a microsecond. A thread of each rank looks whether they move on, and
writes the last one to a small beat file, so that the others can say where a rank was that no longer answers. It needs
no collective call: reports and summary go through the shared file system, also when rank 0 is the one that hangs.
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
from colorgan.runs.hang_reports import SUMMARY, RankStatus, read_standing, summary_text

EXIT_HUNG = (
    76  # EX_PROTOCOL: a rank did not answer; the same command goes on from the last checkpoint
)
TRIPPED = ".tripped"
BEAT_BYTES = 4096
T = TypeVar("T")


class Point(NamedTuple):
    """A place in the program that a rank has reached; `number` counts the points before it, alike on all ranks."""

    name: str
    images_seen: int
    number: int
    batches: tuple[Any, ...] = ()


class Watchdog:
    """Watches this rank while open. Entered and left on all ranks.

    Args:
        folder: where reports go, one folder a start; None: watch nothing.
        timeout_s: all ranks have ended this long after one of them stopped moving. It trips a little earlier, so that
            reports can be written before the process group's own timeout of the same length.
        end: ends the process; for tests.
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
        self._margin_s = min(60.0, max(1.0, 0.2 * timeout_s))  # for the reports
        self._patience_s = max(1.0, timeout_s - self._margin_s)
        self._beat_s = min(5.0, max(0.1, timeout_s / 40))
        self._point = Point("start", 0, 0)
        self._collective = "none yet"
        self._idle_s = 0.0
        self._closed = threading.Event()
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
            name: the same words at the same place on all ranks; noted again, it counts as moving on.
            batches: this rank's micro-batches of the step, for their places in the order; None keeps the last.
            collective: all ranks wait for each other here.
        """
        before = self._point
        number = before.number + (name != before.name or images_seen != before.images_seen)
        self._point = Point(
            name, images_seen, number, before.batches if batches is None else tuple(batches)
        )
        if collective:
            self._collective = f"{name} at {images_seen} images"

    def moving(self, items: Iterable[T], name: str, images_seen: int) -> Iterator[T]:
        """Yield `items`, each one noted as moving on."""
        for item in items:
            self.note(name, images_seen)
            yield item

    def __enter__(self) -> Watchdog:
        if sys.gettrace() is not None:  # someone steps through it
            return self
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        self.folder = self.folder / self._ranks.gather(name)[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat = os.open(self._beat_path(self._ranks.rank), os.O_RDWR | os.O_CREAT, 0o644)
        self._write_beat()
        self._stacks = self._path("stacks.txt").open("w")
        self._ranks.barrier()  # every rank's process is known to the others from here on
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
        self._stacks.close()
        os.close(self._beat)
        self._path("stacks.txt").unlink(missing_ok=True)
        if value is None or self._ranks.world_size == 1:  # else the others read who was where
            self._beat_path(self._ranks.rank).unlink(missing_ok=True)
            for folder in (self.folder, self.folder.parent):
                with suppress(OSError):  # not empty, or gone
                    folder.rmdir()

    def _watch(self) -> None:
        seen, then = self._point, time.monotonic()
        while not self._closed.wait(self._beat_s):
            now = time.monotonic()
            # A process that was suspended (SIGSTOP, scontrol suspend) has not aged meanwhile.
            self._idle_s += min(now - then, 2 * self._beat_s)
            then = now
            if self._point is not seen:
                seen, self._idle_s = self._point, 0.0
            with suppress(OSError):  # a full disk
                self._write_beat()
            assert self._stacks is not None
            # Only a thread of C can still tell the stacks when the interpreter itself is stuck.
            faulthandler.dump_traceback_later(self._patience_s + self._margin_s, file=self._stacks)
            if self._idle_s > self._patience_s or (self.folder / TRIPPED).exists():
                self._report_and_end()
                return

    def standing(self) -> dict[str, Any]:
        """Return where this rank is, as JSON data."""
        point = self._point
        slots = [int(slot) for batch in point.batches for slot in batch.positions_B.tolist()]
        samples = [int(sample) for batch in point.batches for sample in batch.sample_ids_B.tolist()]
        return {
            "rank": self._ranks.rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": started(os.getpid()),
            "point": point.name,
            "number": point.number,
            "step": point.images_seen // self._batch,
            "images_seen": point.images_seen,
            "sample_positions": [min(slots), max(slots)] if slots else [],
            "samples": samples[:64],
            "last_collective": self._collective,
            "idle_s": round(self._idle_s, 1),
        }

    def _write_beat(self) -> None:
        standing = {key: value for key, value in self.standing().items() if key != "samples"}
        os.pwrite(
            self._beat, json.dumps({**standing, "time": time.time()}).encode().ljust(BEAT_BYTES), 0
        )

    def _report_and_end(self) -> None:
        """In the watchdog's thread: report, wait for the others' reports, sum up, end all processes."""
        deadline = time.monotonic() + self._margin_s
        with suppress(OSError):
            (self.folder / TRIPPED).touch()
            report = {**self.standing(), "time": time.time(), "stacks": python_stacks()}
            partial = self._path("json.partial")
            partial.write_text(json.dumps(report, indent=1))
            partial.replace(self._path("json"))
        everyone = range(self._ranks.world_size)
        silent = list(everyone)
        while silent and time.monotonic() < deadline - 0.5 * self._margin_s:
            time.sleep(0.02)
            silent = [rank for rank in everyone if not self._path("json", rank).exists()]
        reported = [rank for rank in everyone if rank not in silent]
        if not reported or self._ranks.rank == reported[0]:
            self._sum_up()
        while (
            not (self.folder / SUMMARY).exists()
            and time.monotonic() < deadline - 0.2 * self._margin_s
        ):
            time.sleep(0.02)
        for rank in silent:
            if (peer := read_standing(self._beat_path(rank))) is not None:
                end_process(peer)
        self._end(EXIT_HUNG)

    def _sum_up(self) -> None:
        text = summary_text(self.standings(), self._patience_s)
        with suppress(OSError):
            partial = self.folder / f".{SUMMARY}.partial-{self._ranks.rank}"
            partial.write_text(text)
            partial.replace(self.folder / SUMMARY)
        print(f"{text}\nReports: {self.folder}", file=sys.stderr, flush=True)

    def standings(self) -> list[RankStatus | None]:
        """Return where every rank is, from its report or else its last beat; None: neither can be read."""
        ranks = range(self._ranks.world_size)
        return [
            read_standing(self._path("json", r)) or read_standing(self._beat_path(r)) for r in ranks
        ]

    def lost_ranks(self) -> list[RankStatus]:
        """Return the ranks whose process on this machine has ended, as they stood at their last beat."""
        peers = [read_standing(self._beat_path(rank)) for rank in range(self._ranks.world_size)]
        return [
            peer
            for peer in peers
            if peer and peer.host == socket.gethostname() and not is_alive(peer)
        ]

    def _path(self, ending: str, rank: int | None = None) -> Path:
        return self.folder / f"rank-{self._ranks.rank if rank is None else rank:05d}.{ending}"

    def _beat_path(self, rank: int) -> Path:
        return self.folder / f".beat-{rank:05d}"


def python_stacks() -> dict[str, list[str]]:
    """Return the Python stack of every thread of this process, by the thread's name, innermost line last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {}
    for ident, frame in sys._current_frames().items():
        lines = [
            f"{e.filename}:{e.lineno} {e.name}: {e.line}" for e in traceback.extract_stack(frame)
        ]
        stacks[names.get(ident, f"thread {ident}")] = lines
    return stacks


def started(process: int) -> int:
    """Return when a process of this machine started, in clock ticks since boot; 0 where it is not known or ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_alive(peer: RankStatus) -> bool:
    """Return whether a rank's process still runs; only for ranks of this machine."""
    return started(peer.process) == peer.started != 0


def end_process(peer: RankStatus) -> None:
    """Kill a rank of this machine that does not answer, so that nothing waits for it and its memory comes free."""
    if peer.host == socket.gethostname() and is_alive(peer) and peer.process != os.getpid():
        with suppress(OSError):
            os.kill(peer.process, signal.SIGKILL)
