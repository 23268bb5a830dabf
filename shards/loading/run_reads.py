"""Samples read by runs: the first one that is read of a run has the system fetch the rest of it.

Between the loader and the files (shards/loading/shard_set.py), for sets whose order goes by runs (shards/order.py). Each sample is
read and checked by itself as ever; the hint only spares the disk a seek for each of those that follow soon, on this
rank or on another of the same node.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path

import numpy as np

from shards.loading.shard_set import ShardSet
from shards.order import SPREAD_RUNS
from shards.storage.shard_files import ShardFiles

# A node takes its share of every batch, so each of N nodes needs an Nth of a run's samples. With more nodes than this
# they would ask a disk that they share for more bytes than the seeks are worth.
MAX_NODES = 2
_REMEMBERED = 2 * SPREAD_RUNS  # twice the runs that are under way at a time
_MEMBERS = ("image", "label", "mask")

Span = tuple[int, int]  # offset, size


class RunReads:
    """Reads with a hint for each run that is begun; from any thread.

    Args:
        shards: The set.
        run_samples: Samples in a run.
        files: What is read from, and told.
    """

    def __init__(self, shards: ShardSet, run_samples: int, files: ShardFiles) -> None:
        self._shards, self._run_samples, self._files = shards, run_samples, files
        self._numbers = {path: number for number, path in enumerate(shards.shard_paths)}
        self._starts = np.cumsum([0, *shards.shard_sizes])
        self._edges: dict[int, list[int]] = {}  # shard -> where its runs begin, and their end
        self._begun: OrderedDict[tuple[int, int], None] = OrderedDict()  # (shard, run)
        self._lock = threading.Lock()

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`: fewer at the file's end. Raises OSError."""
        if (span := self.begin(self._numbers[path], offset)) is not None:
            self._files.will_need(path, *span)
        return self._files.read_at(path, offset, size)

    def begin(self, shard: int, offset: int) -> Span | None:
        """Where the run lies whose first sample is read at `offset`; None where it has been begun before."""
        with self._lock:
            edges = self._edges.get(shard) or self._find_edges(shard)
            run = bisect_right(edges, offset, hi=len(edges) - 1) - 1
            known = (shard, run) in self._begun
            self._begun[shard, run] = None
            self._begun.move_to_end((shard, run))
            if len(self._begun) > _REMEMBERED:
                self._begun.popitem(last=False)
        return None if known or run < 0 else (edges[run], edges[run + 1] - edges[run])

    def _find_edges(self, shard: int) -> list[int]:
        """The offsets of each run's first picture (a sample's first member), and the end of the last sample."""
        first, end = int(self._starts[shard]), int(self._starts[shard + 1])
        rows = self._shards.rows(np.append(np.arange(first, end, self._run_samples), end - 1))
        ends = [
            int(rows[-1][f"{member}_offset"]) + int(rows[-1][f"{member}_size"])
            for member in _MEMBERS
        ]
        self._edges[shard] = [*rows["image_offset"][:-1].tolist(), max(ends)]
        return self._edges[shard]
