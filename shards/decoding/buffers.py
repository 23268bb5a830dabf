"""Output memory that is used again once nobody holds it: fresh memory costs page faults for every batch.

Used by shards/decoding/dali.py on the CPU. A batch of 32 pictures of 256x256 is 25 MB; allocated anew by a thread that
is not the main one, the system maps and clears its pages every time (0.15 ms a picture, as much as Lab itself).
"""

import sys

import numpy as np
from numpy.typing import NDArray

# References to an array that nobody outside holds: the list's, the loop variable's, and getrefcount's own.
_IDLE_REFERENCES = 3


class Buffers:
    """A pool of float32 arrays of one shape.

    A tensor made by `torch.from_numpy` keeps a reference to its array for as long as it, a view of it, or
    anything else that shares its storage lives; an array without such a reference is free to be used again.

    Args:
        max_kept: Arrays kept; a consumer that hoards batches gets memory of its own beyond them.
    """

    def __init__(self, max_kept: int = 16) -> None:
        self._max_kept = max_kept
        self._arrays: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of this shape with anything in it."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) <= _IDLE_REFERENCES:
                return array
        fresh = np.empty(shape, np.float32)
        # Another shape is a short last batch, or the full one after it.
        self._arrays = [array for array in self._arrays if array.shape == shape][
            : self._max_kept - 1
        ]
        self._arrays.append(fresh)
        return fresh
