"""Page-cache hints: reading the first sample of a block asks the kernel to prefetch the rest.

Between the loader and the files, for sets whose order goes by blocks (RUN_SAMPLES in
shards/order.py). Each sample is still read and checked by itself; the hint only saves the disk a
seek for each sample that follows soon, on this rank or on another of the same node.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path

import numpy as np

from shards.loading.shard_set import ShardSet
from shards.order import SPREAD_RUNS, WINDOW_SHARDS
from shards.storage.shard_files import ShardFiles

# A node takes its slice of every batch, so each of N nodes needs an Nth of a block's samples. More
# nodes than this would ask a shared disk for more bytes than the seeks are worth.
MAX_NODES = 2
_REMEMBERED = 2 * SPREAD_RUNS  # twice the blocks that are in use at a time
_REMEMBERED_SHARDS = 2 * WINDOW_SHARDS
_MEMBERS = ("image", "label", "mask")

Span = tuple[int, int]  # offset, size


class RunReads:
    """Reads with a hint for each block that is begun; from any thread.

    Args:
        shards: The set.
        run_samples: Samples in a block.
        files: Reads and passes the hints on.
    """

    def __init__(self, shards: ShardSet, run_samples: int, files: ShardFiles) -> None:
        self._shards = shards
        self._run_samples = run_samples
        self._files = files
        self._numbers = {path: number for number, path in enumerate(shards.shard_paths)}
        self._starts = np.cumsum([0, *shards.shard_sizes])

        self._lock = threading.Lock()
        # Per shard: where its blocks begin, and their end. Of the shards read lately only: all of a
        # large set's would fill the memory.
        self._edges: OrderedDict[int, list[int]] = OrderedDict()
        self._begun: OrderedDict[tuple[int, int], None] = OrderedDict()  # shard, block

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset`: fewer at the file's end.

        Raises:
            OSError: The file cannot be opened or read.
        """
        span = self.begin(self._numbers[path], offset)
        if span is not None:
            # Once per block: repeated hints cost a system call each and fetch nothing new.
            self._files.will_need(path, *span)
        return self._files.read_at(path, offset, size)

    def begin(self, shard: int, offset: int) -> Span | None:
        """Return offset and size of the block at `offset`, or None if it was begun before."""
        with self._lock:
            edges = self._edges.get(shard) or self._find_edges(shard)
            # The last edge is an end, not a beginning.
            block = bisect_right(edges, offset, hi=len(edges) - 1) - 1

            known = (shard, block) in self._begun
            self._begun[shard, block] = None
            self._begun.move_to_end((shard, block))
            if len(self._begun) > _REMEMBERED:
                self._begun.popitem(last=False)

        if known or block < 0:
            return None
        return edges[block], edges[block + 1] - edges[block]

    def _find_edges(self, shard: int) -> list[int]:
        """Return the offsets of each block's first image, and the end of the last sample."""
        first, end = int(self._starts[shard]), int(self._starts[shard + 1])
        ids = np.append(np.arange(first, end, self._run_samples), end - 1)
        rows = self._shards.rows(ids)

        last = rows[-1]
        # Members of a sample may come in any order in shards made elsewhere.
        ends = [int(last[f"{name}_offset"]) + int(last[f"{name}_size"]) for name in _MEMBERS]
        edges = [*rows["image_offset"][:-1].tolist(), max(ends)]

        self._edges[shard] = edges
        if len(self._edges) > _REMEMBERED_SHARDS:
            self._edges.popitem(last=False)
        return edges
