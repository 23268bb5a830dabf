"""Samples read ahead of need by a pool of threads, so that storage works while the decoder does.

Between shards/loading/shard_set.py, which reads one sample, and shards/loading/stream.py, which says which ones are next.
"""

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

Result = Members | BadSampleError


class ReadingStopped(Exception):  # noqa: N818 (no error: it ends the thread that waits for reads)
    """The reads were called off."""


@dataclass(slots=True)
class _Task:
    """A run of samples for one thread; `results` grows as they come in."""

    rows: Rows
    results: list[Result] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False


class PendingReads:
    """Samples on their way; `collect` waits for them."""

    def __init__(self, pool: "ReadAhead", tasks: list[_Task]) -> None:
        self._pool = pool
        self._tasks = tasks

    def collect(self) -> list[Result]:
        """Each sample's bytes, or why it has none, in the order asked for.

        Raises:
            ReadingStopped: `ReadAhead.abort` was called meanwhile.
        """
        return [result for task in self._tasks for result in self._pool.results_of(task)]


class ReadAhead:
    """The pool.

    Its threads are daemons: a read that never returns (a dead network mount) costs one thread, which is
    given up after the time limit and made good for, and cannot hold up the end of the process.

    Args:
        shards: The set.
        wanted: The members to read, and how patient to be.
        num_threads: Reads at a time.
        read_at: How a file is read.
    """

    def __init__(
        self, shards: ShardSet, wanted: MemberSpec, num_threads: int, read_at: ReadAt
    ) -> None:
        self._shards, self._wanted, self._read_at = shards, wanted, read_at
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._num_started = 0
        self._num_threads = num_threads
        self._aborted = threading.Event()
        for _ in range(num_threads):
            self._start_thread()

    def read(self, ids: NDArray[np.int64]) -> PendingReads:
        """Begin to read these samples, each thread an equal run of them."""
        rows = self._shards.rows(ids)
        run = max(1, -(-len(rows) // self._num_threads))
        tasks = [_Task(rows[begin : begin + run]) for begin in range(0, len(rows), run)]
        for task in tasks:
            self._tasks.put(task)
        return PendingReads(self, tasks)

    def results_of(self, task: _Task) -> list[Result]:
        """The task's results; a sample that nothing came of for the time limit is a bad one.

        Raises:
            ReadingStopped: `abort` was called meanwhile.
        """
        results: list[Result] = []
        while not self._finished(task):
            stalled = len(task.results)
            path = self._shards.shard_paths[task.rows["shard"][stalled]]
            bad = BadSampleError(f"{path.name}: nothing read for {self._wanted.timeout_s:g} s")
            results += [*task.results[:stalled], bad]
            task = _Task(task.rows[stalled + 1 :])
            self._tasks.put(task)
            self._start_thread()  # in the stalled one's place
        return results + task.results

    def abort(self) -> None:
        """Wake whoever waits for a read; from any thread."""
        self._aborted.set()

    def close(self) -> None:
        """Let the threads end; those stuck in a read are left behind."""
        for _ in range(self._num_started):
            self._tasks.put(None)

    def _finished(self, task: _Task) -> bool:
        """Wait for the task; False where it is given up, since it has not moved on for the time limit."""
        seen, since = 0, time.monotonic()
        while not task.done.wait(min(_POLL_S, self._wanted.timeout_s)):
            if self._aborted.is_set():
                raise ReadingStopped
            if len(task.results) > seen or self._is_fetching(task):
                seen, since = len(task.results), time.monotonic()
            elif time.monotonic() - since > self._wanted.timeout_s:
                task.given_up = True
                return len(task.results) == len(task.rows)
        return True

    def _is_fetching(self, task: _Task) -> bool:
        """Whether the read waits for a remote shard, whose fetch has a time limit of its own."""
        for row in task.rows[len(task.results) : len(task.results) + 1]:
            path = self._shards.shard_paths[row["shard"]]
            remote = remote_of(path)
            return remote is not None and remote.is_fetching(path.name)
        return False

    def _start_thread(self) -> None:
        self._num_started += 1
        threading.Thread(target=self._work, name="shards-read", daemon=True).start()

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
            return read_members(self._shards, row, self._wanted, self._read_at)
        except BadSampleError as bad:
            return bad
        except (
            Exception
        ) as error:  # a reader that was passed in: whatever it raises is this sample's
            return BadSampleError(f"{self._shards.shard_paths[row['shard']].name}: {error!r}")
