"""What the packer asks of a corpus: the shape of the adapters' records, stated here, imported from nowhere.

`launcher/pack.py` opens a corpus with `datasets` and hands it to shards/packing/pack.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class MaskLike(Protocol):
    """A mask that is read where it is needed; picklable."""

    def read(self) -> NDArray[np.uint8]:
        """H x W class indices of the picture as stored: 0 background, i + 1 = classes[i], 255 void."""
        ...


class RecordLike(Protocol):
    """One sample of a corpus, unopened; picklable and small.

    `label["objects"]` may hold dicts with a `box` [x0, y0, x1, y1] in pixels of the picture as stored.
    """

    @property
    def key(self) -> str: ...
    @property
    def image(self) -> Path: ...
    @property
    def label(self) -> dict[str, Any]: ...
    @property
    def mask(self) -> MaskLike | None: ...


class CorpusLike(Protocol):
    """A split of a corpus; `records` starts a fresh pass that gives the same records in the same order."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...
    @property
    def num_records(self) -> int | None: ...
    @property
    def records(self) -> Callable[[], Iterator[RecordLike]]: ...
