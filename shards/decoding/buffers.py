"""Output memory that is used again once nobody holds it: fresh memory costs page faults per batch.

Used by shards/decoding/decoder.py on the CPU. A batch of 32 images of 256x256 is 25 MB; allocated
anew by a thread that is not the main one, the system maps and clears its pages every time (0.15 ms
per image, as much as Lab itself).
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

# References to an array that nobody outside holds: the list's, the loop variable's, and
# getrefcount's own.
_IDLE_REFERENCES = 3


class Buffers:
    """A pool of float32 arrays of one shape.

    A tensor made by `torch.from_numpy` keeps a reference to its array for as long as it, a view of
    it, or anything else that shares its storage lives; an array without such a reference is free.

    Args:
        max_kept: Arrays kept; a consumer that holds more batches gets memory of its own for them.
    """

    def __init__(self, max_kept: int = 16) -> None:
        self._max_kept = max_kept
        self._arrays: list[NDArray[np.float32]] = []

    @property
    def num_kept(self) -> int:
        """Return the number of arrays in the pool."""
        return len(self._arrays)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array of this shape; its content is undefined."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) <= _IDLE_REFERENCES:
                return array

        # Another shape is a short last batch, or the full one after it: the old ones are dropped.
        fresh = np.empty(shape, np.float32)
        same_shape = [array for array in self._arrays if array.shape == shape]
        self._arrays = [*same_shape[: self._max_kept - 1], fresh]
        return fresh
