"""Fetches remote shards before their first sample is due, so that training never waits for them.

Between the plans of micro-batches and the threads that read them (shards/loading/micro_batches.py).
Local sets pass through.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.loading.shard_set import ShardSet
from shards.order import WINDOW_SHARDS
from shards.storage.remote import remote_of

logger = logging.getLogger("shards")

# Half a window: the next window is fetched while the second half of this one is read.
_AHEAD_SHARDS = WINDOW_SHARDS // 2
_NUM_THREADS = 4


class _Planned(Protocol):
    @property
    def positions(self) -> NDArray[np.int64]: ...
    @property
    def ids(self) -> NDArray[np.int64]: ...


P = TypeVar("P", bound=_Planned)


def fetched_ahead(plans: Iterator[P], shards: ShardSet) -> Iterator[P]:
    """Yield the plans unchanged while the shards of later ones are being fetched.

    The look-ahead grows by one plan with each plan taken, up to `_AHEAD_SHARDS` shards' worth of
    samples: the first plan is not delayed, and the number held is bounded.
    """
    if not any(remote_of(path) for path in shards.shard_paths):
        yield from plans
        return

    samples_per_shard = -(-shards.num_samples // max(1, len(shards.shard_paths)))
    reach = _AHEAD_SHARDS * samples_per_shard
    fetcher, ahead = _Fetcher(shards), deque[P]()
    try:
        while True:
            # Two for each one taken: the look-ahead grows while training already runs.
            for _ in range(2):
                # Measured in samples, not plans: micro-batches may be of any size.
                if ahead and ahead[-1].positions[0] - ahead[0].positions[0] >= reach:
                    break
                if (plan := next(plans, None)) is not None:
                    ahead.append(plan)
                    fetcher.request(plan.ids)

            if not ahead:
                return
            yield ahead.popleft()
    finally:
        fetcher.close()


class _Fetcher:
    """Threads that fetch shards in the order of the requests; daemons, so that none delays exit."""

    def __init__(self, shards: ShardSet) -> None:
        self._paths = shards.shard_paths
        self._starts = np.cumsum([0, *shards.shard_sizes])
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._requests: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._closed = threading.Event()

        for _ in range(_NUM_THREADS):
            threading.Thread(target=self._work, name="shards-fetch", daemon=True).start()

    def request(self, ids: NDArray[np.int64]) -> None:
        """Fetch the shards that hold these samples, unless they were requested lately."""
        # The set's table of starts is small; the table of samples would be read from disk for this.
        numbers = np.searchsorted(self._starts, ids, side="right") - 1
        for number in dict.fromkeys(numbers.tolist()):
            if number not in self._recent:
                self._requests.put(self._paths[number])

            # Moved to the end at each use, so that shards of the present window are not forgotten.
            self._recent[number] = None
            self._recent.move_to_end(number)
            if len(self._recent) > WINDOW_SHARDS:
                self._recent.popitem(last=False)

    def close(self) -> None:
        """Let the threads end after their present fetch."""
        self._closed.set()
        for _ in range(_NUM_THREADS):
            self._requests.put(None)

    def _work(self) -> None:
        while (path := self._requests.get()) is not None and not self._closed.is_set():
            remote = remote_of(path)
            if remote is None:
                continue
            try:
                # Not needed yet: a full cache may refuse it, rather than push out what is being
                # read.
                remote.fetch(path.name, needed=False)
            except (
                OSError
            ) as error:  # the thread that reads the shard meets it again, and reports it
                logger.info("fetched ahead: %s", error)
