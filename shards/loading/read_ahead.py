"""Reads samples ahead of need in a pool of threads, so that storage works while the decoder does.

Between shards/loading/members.py, which reads one sample, and shards/loading/micro_batches.py,
which knows which samples come next.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.loading.members import BadSampleError, Members, MemberSpec, read_members
from shards.loading.shard_set import Rows, ShardSet
from shards.storage.remote import remote_of
from shards.storage.shard_files import ReadAt

_POLL_S = 0.1
READER_NAME = "shards-read"

Result = Members | BadSampleError


# Not an error, despite its base: it ends the thread that waits for reads.
class ReadingStopped(Exception):  # noqa: N818
    """The reads were called off."""


@dataclass(slots=True)
class _Task:
    """A block of samples for one thread; `results` grows as they come in."""

    rows: Rows
    results: list[Result] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False


class PendingReads:
    """Samples that are being read; `collect` waits for them."""

    def __init__(self, pool: ReadAhead, tasks: list[_Task]) -> None:
        self._pool = pool
        self._tasks = tasks

    def collect(self) -> list[Result]:
        """Return each sample's bytes, or why there are none, in the order of the request.

        Raises:
            ReadingStopped: `ReadAhead.abort` was called meanwhile.
        """
        results: list[Result] = []
        for task in self._tasks:
            results += self._pool.results_of(task)
        return results


class ReadAhead:
    """The pool.

    Its threads are daemons: a read that never returns (a dead network mount) costs one thread,
    which is given up after the time limit, replaced by another, and cannot delay the process's
    exit.

    Args:
        shards: The set.
        spec: The members to read, and the time limit.
        num_threads: Reads at a time.
        read_at: How a file is read.
    """

    def __init__(
        self, shards: ShardSet, spec: MemberSpec, num_threads: int, read_at: ReadAt
    ) -> None:
        self._shards = shards
        self._spec = spec
        self._read_at = read_at
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._aborted = threading.Event()
        self._num_threads = num_threads
        self._num_started = 0
        for _ in range(num_threads):
            self._start_thread()

    def read(self, ids: NDArray[np.int64]) -> PendingReads:
        """Begin to read these samples, an equal block of them per thread."""
        rows = self._shards.rows(ids)
        # Blocks, not single samples: each hand-over between threads costs some microseconds.
        size = max(1, -(-len(rows) // self._num_threads))
        tasks = [_Task(rows[begin : begin + size]) for begin in range(0, len(rows), size)]
        for task in tasks:
            self._tasks.put(task)
        return PendingReads(self, tasks)

    def results_of(self, task: _Task) -> list[Result]:
        """Wait for a task; a sample that does not come within the time limit is a bad one.

        Raises:
            ReadingStopped: `abort` was called meanwhile.
        """
        results: list[Result] = []
        while not self._is_finished(task):
            num_read = len(task.results)
            path = self._shards.shard_paths[task.rows["shard"][num_read]]
            limit_s = self._spec.retry.stall_s
            results += task.results[:num_read]
            results.append(BadSampleError(f"{path.name}: nothing read for {limit_s:g} s"))

            # The rest goes to another thread, started in the stalled one's place.
            task = _Task(task.rows[num_read + 1 :])
            self._tasks.put(task)
            self._start_thread()
        return results + task.results

    def abort(self) -> None:
        """Wake every thread that waits for a read; from any thread."""
        self._aborted.set()

    def close(self) -> None:
        """Let the threads end; those stuck in a read are left behind."""
        for _ in range(self._num_started):
            self._tasks.put(None)

    def _is_finished(self, task: _Task) -> bool:
        """Wait for the task; return False if it is given up: no progress within the limit."""
        limit_s = self._spec.retry.stall_s
        num_seen, since = 0, time.monotonic()

        # Polled, so that `abort` ends the wait, and progress is seen sample by sample.
        while not task.done.wait(min(_POLL_S, limit_s)):
            if self._aborted.is_set():
                raise ReadingStopped
            if len(task.results) > num_seen or self._is_fetching(task):
                num_seen, since = len(task.results), time.monotonic()
            elif time.monotonic() - since > limit_s:
                # The stuck thread sees it if it ever returns, and adds nothing more.
                task.given_up = True
                # The last result may have come between the check and now.
                return len(task.results) == len(task.rows)
        return True

    def _is_fetching(self, task: _Task) -> bool:
        """Return whether the read waits for a remote shard, whose fetch has its own limit."""
        next_row = task.rows[len(task.results) : len(task.results) + 1]
        if not len(next_row):
            return False
        path = self._shards.shard_paths[next_row["shard"][0]]
        remote = remote_of(path)
        return remote is not None and remote.is_fetching(path.name)

    def _start_thread(self) -> None:
        # Counted, as every thread needs a None of its own to end.
        self._num_started += 1
        threading.Thread(target=self._work, name=READER_NAME, daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            for row in task.rows:
                result = self._read_one(row)
                if task.given_up:
                    break
                task.results.append(result)
            task.done.set()

    def _read_one(self, row: np.void) -> Result:
        try:
            return read_members(self._shards, row, self._spec, self._read_at)
        except BadSampleError as bad:
            return bad
        except Exception as error:  # `read_at` may be anybody's: its error belongs to this sample
            path = self._shards.shard_paths[row["shard"]]
            return BadSampleError(f"{path.name}: {error!r}")
