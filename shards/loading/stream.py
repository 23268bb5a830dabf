"""Makes micro-batches in a background thread, with a bounded queue between it and the consumer.

The engine of shards/loading/loader.py; what it makes is in shards/loading/micro_batches.py.

Python's lock: this thread and the readers hold it for some 80 us per image, in stretches of tens of
microseconds between calls that release it (pread, crc32, DALI, the compiled kernels). The training
thread gets it back at such a call, long before Python's switch interval of 5 ms forces it. So
`sys.setswitchinterval`, which would change every thread of the process, is left alone: with 0.5 ms
a thread that launches small operators beside a running loader had the same median and no better
tail.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from functools import cache

from shards.loading.micro_batches import BatchMaker, Decoded, Plan
from shards.loading.read_ahead import READER_NAME, ReadingStopped

_POLL_S = 0.1
_JOIN_S = 10.0
_READERS_LEAVE_S = 1.0

_RUNNING: weakref.WeakSet[Stream] = weakref.WeakSet()


@cache
def _close_at_exit() -> None:
    """Have the streams that still run end with the process.

    Called when a maker has its decoder, so after the import of DALI: what is registered later is
    called before DALI destroys the pipelines that the streams' threads use.
    """
    atexit.register(_close_running)


def _close_running() -> None:
    for stream in list(_RUNNING):
        stream.close()

    # Readers that were told to end may be at work still: one that asks for Python's lock while the
    # interpreter ends aborts the process. One that is stuck in a read is not waited for longer.
    end = time.monotonic() + _READERS_LEAVE_S
    for thread in threading.enumerate():
        if thread.name == READER_NAME:
            thread.join(max(0.0, end - time.monotonic()))


class Stream:
    """A `BatchMaker` in a thread of its own, which `start` starts.

    The thread is a daemon and checks for `close` every tenth of a second, so nothing waits for it
    for long.

    Args:
        maker: Makes the micro-batches.
        plans: What to make.
        max_ready: Finished micro-batches that are kept ready.
    """

    def __init__(self, maker: BatchMaker, plans: Iterator[Plan], max_ready: int) -> None:
        self._maker = maker
        self._plans = plans
        self._ready: queue.Queue[Decoded | BaseException | None] = queue.Queue(max_ready)
        self._stop = threading.Event()
        self.wait_s = 0.0
        self._thread = threading.Thread(target=self._work, name="shards-stream", daemon=True)

    def start(self) -> None:
        """Start the thread; whoever may call `close` must know this stream before."""
        _close_at_exit()
        _RUNNING.add(self)
        self._thread.start()

    def next(self) -> Decoded | None:
        """Return the next micro-batch; None at the end or after `close`.

        Raises:
            LoadError: Too many samples are bad.
        """
        begin = time.perf_counter()
        try:
            while not self._stop.is_set():
                try:
                    # With a timeout: `close` from another thread must end this wait.
                    result = self._ready.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(result, BaseException):
                    raise result
                return result
            return None
        finally:
            # Also when it raises: the consumer did wait.
            self.wait_s += time.perf_counter() - begin

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self._stop.set()
        self._maker.abort()
        # A generator's finaliser may run in the stream's own thread, which cannot join itself.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=_JOIN_S)

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            for decoded in self._maker.make(self._plans):
                if not self._put(decoded):
                    break
        # Called off by `close`: nobody waits for a result.
        except ReadingStopped:
            pass
        except BaseException as error:  # any error belongs to the consumer
            end = error
        finally:
            self._maker.close()

        # Last, None or the error: the consumer learns of the end in order, after all batches.
        self._put(end)

    def _put(self, result: Decoded | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(result, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
