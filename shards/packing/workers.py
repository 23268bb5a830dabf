"""Worker processes for the packer: chunks of records in, packed chunks out, in order.

Processes are spawned, not forked: the parent may hold a corpus of gigabytes and threads of a
progress bar. A worker that dies (a decoder's segmentation fault, the kernel out of memory) does not
end the packing: its chunk is done again record by record, and the record that kills its worker
twice is rejected by name.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from shards.errors import PackError
from shards.packing.inputs import file_stamps
from shards.packing.samples import Job, PackedChunk, join_chunks, pack_chunk, rejection
from shards.records import Record

IN_FLIGHT = 3  # chunks a worker: one in work, one waiting, one on its way back
Chunk = Sequence[Record]


class PackingPool:
    """`workers` processes that pack chunks; 0 works in this process, unprotected from crashes."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def run(self, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        """Yield packed chunks in the order of `chunks`, read ahead by at most 3 per worker."""
        if self._workers == 0:
            yield from (pack_chunk(self._job, chunk) for chunk in chunks)
            return
        pending: deque[tuple[Chunk, Future[PackedChunk]]] = deque()
        for chunk in chunks:
            # With its chunk: if a worker dies, it has to be done again.
            pending.append((chunk, self._submit(chunk)))
            if len(pending) >= IN_FLIGHT * self._workers:
                yield self._next(pending)
        while pending:
            yield self._next(pending)

    def _next(self, pending: deque[tuple[Chunk, Future[PackedChunk]]]) -> PackedChunk:
        chunk, future = pending.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            # The pool is broken as a whole: every chunk in flight is lost with it.
            self._close()
        packed = self._one_by_one(chunk)
        # In their order, behind the chunk that was done by itself.
        again = [(chunk, self._submit(chunk)) for chunk, _ in pending]
        pending.clear()
        pending.extend(again)
        return packed

    def _submit(self, chunk: Chunk) -> Future[PackedChunk]:
        if self._pool is None:
            self._pool = new_pool(self._workers)
        try:
            return self._pool.submit(pack_chunk, self._job, chunk)
        except BrokenProcessPool as error:
            failed: Future[PackedChunk] = Future()
            # Handled where results are awaited, in one place.
            failed.set_exception(error)
            return failed

    def _one_by_one(self, chunk: Chunk) -> PackedChunk:
        """Pack a chunk in which a worker died; the records that kill theirs twice are rejected."""
        packed = []
        with ExitStack() as pools:
            pool = pools.enter_context(_single_worker())
            for record in chunk:
                # Twice: the kernel may have killed the wrong process for another's memory.
                for _ in range(2):
                    try:
                        packed.append(pool.submit(pack_chunk, self._job, [record]).result())
                        break
                    except BrokenProcessPool:
                        pool = pools.enter_context(_single_worker())
                else:
                    reason = "its decoder crashed, or ran out of memory"
                    left_out = rejection(self._job.root, record, reason)
                    packed.append(PackedChunk(rejected=[left_out], stamps=file_stamps(record)))
        return join_chunks(packed)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def new_pool(workers: int) -> ProcessPoolExecutor:
    """Make processes that leave Ctrl-C to this one and die with it."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _single_worker() -> ProcessPoolExecutor:
    """Make a pool of one process that is known to have started."""
    pool = new_pool(1)
    try:
        # Started before it is trusted: else a record would be blamed for a process that never ran.
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise PackError(
            "worker processes cannot start or are killed at once; look at the free memory, and try "
            "--workers 1."
        ) from error
    return pool


def _start_worker() -> None:
    """Leave Ctrl-C to the parent and die with it: a killed parent cannot stop its workers."""
    # The terminal sends Ctrl-C to all of them; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
