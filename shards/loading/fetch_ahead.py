"""Remote shards fetched before their first sample is due, so that training does not wait for the network.

Between the plans of micro-batches and the threads that read them (shards/loading/stream.py). Local sets pass through.
"""

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
from shards.manifest import MANIFEST_FILE
from shards.order import WINDOW_SHARDS
from shards.storage.remote import remote_of

logger = logging.getLogger("shards")

_AHEAD_SHARDS = WINDOW_SHARDS // 2  # half a window's reading time to fetch the next window in
_NUM_THREADS = 4


class _Planned(Protocol):
    @property
    def positions(self) -> NDArray[np.int64]: ...
    @property
    def ids(self) -> NDArray[np.int64]: ...


P = TypeVar("P", bound=_Planned)


def fetched_ahead(plans: Iterator[P], shards: ShardSet) -> Iterator[P]:
    """The plans, unchanged; the shards of those to come are on their way.

    Looks further ahead by one plan with each that is taken, up to `_AHEAD_SHARDS` shards' worth of samples:
    the first is not late, and the number held is bounded.
    """
    if not any(remote_of(manifest.folder / MANIFEST_FILE) for manifest in shards.manifests):
        yield from plans
        return
    reach = _AHEAD_SHARDS * -(-shards.num_samples // max(1, len(shards.shard_paths)))
    fetcher, ahead = _Fetcher(shards), deque[P]()
    try:
        while True:
            for _ in range(2):
                if ahead and ahead[-1].positions[0] - ahead[0].positions[0] >= reach:
                    break
                if (plan := next(plans, None)) is not None:
                    ahead.append(plan)
                    fetcher.want(plan.ids)
            if not ahead:
                return
            yield ahead.popleft()
    finally:
        fetcher.close()


class _Fetcher:
    """Threads that fetch shards in the order in which they are wanted; daemons, so that none holds up an end."""

    def __init__(self, shards: ShardSet) -> None:
        self._paths = shards.shard_paths
        self._starts = np.cumsum([0, *shards.shard_sizes])
        self._recent: OrderedDict[int, None] = OrderedDict()  # wanted lately: not asked for again
        self._wanted: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        for _ in range(_NUM_THREADS):
            threading.Thread(target=self._work, name="shards-fetch", daemon=True).start()

    def want(self, ids: NDArray[np.int64]) -> None:
        """Fetch the shards that hold these samples, soon."""
        numbers = np.searchsorted(self._starts, ids, side="right") - 1
        for number in dict.fromkeys(numbers.tolist()):
            if number not in self._recent:
                self._wanted.put(self._paths[number])
            self._recent[number] = None
            self._recent.move_to_end(number)
            if len(self._recent) > WINDOW_SHARDS:
                self._recent.popitem(last=False)

    def close(self) -> None:
        """Let the threads end after what they fetch now."""
        self._closed.set()
        for _ in range(_NUM_THREADS):
            self._wanted.put(None)

    def _work(self) -> None:
        while (path := self._wanted.get()) is not None and not self._closed.is_set():
            remote = remote_of(path)
            try:
                if remote is not None:
                    remote.fetch(path.name, needed=False)
            except OSError as error:  # who reads the shard meets it again, and says so
                logger.info("fetched ahead: %s", error)
