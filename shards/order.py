"""Which sample comes when, and how it is cropped and flipped: pure functions of seed and epoch.

The first step of loading: shards/loading/loader.py asks here which samples come next, and
shards/loading/shard_set.py finds their bytes. Nothing is remembered between calls, so any position
is reached in constant time, on any number of ranks.

    stream   positions 0, 1, 2, ... without end; epoch = position // num_samples
    epoch    the shards in a drawn order, cut into windows of about WINDOW_SHARDS shards
    window   the blocks of its shards in a drawn order: a rank reads from few files at a time
    block    RUN_SAMPLES neighbouring samples of one shard (the last of a shard may be shorter),
             each delayed by a draw of its own of up to SPREAD_RUNS blocks: they come far apart,
             but soon

So a node reads a block at a time (shards/loading/run_reads.py), where the samples of a shuffled
window would cost a seek each, and finds the rest of it in the page cache until it is due:
RUN_SAMPLES x SPREAD_RUNS = 8,192 samples, 250 MB at 30 kB each. The delays are a sliding window, as
in `py1e` of MosaicML's streaming: seeks come evenly, not in bursts, as they would at the edges of
groups. On 1,281,167 samples in 1,282 shards, for one node (benchmarks/order.py; perfect: 0.3333
and 0):

    block   mean displacement   correlation of neighbours   neighbours of one block   seeks/image
      1          0.3263 n                0.0017                     0.004 %              1.00
      8          0.3263 n                0.0048                     0.087 %              0.13

Sets of different sizes are mixed by weights (MixedOrder): the stream is cut into cycles of
MIX_CYCLE positions, of which each set gets its share exactly, at drawn places; each set has an
order and epochs of its own, which its positions go through one after another. So a small set comes
around more often than a large one, and no set is used up before the others.

All draws hash (seed, purpose, epoch, ...) with splitmix64, a counter-based generator (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): no hidden state,
vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import OrderError

# Every set up to 256 shards is shuffled as a whole. ImageNet, packed class by class in 1,282 shards
# of 1,000, falls into 6 windows; a batch of 256 then holds 154 classes (165 with blocks of 1),
# where a perfect shuffle has 226.
WINDOW_SHARDS = 256
# Half the spread would need half the page cache, and give 144 classes in a batch.
RUN_SAMPLES = 8
SPREAD_RUNS = 1024
# Fewer samples fit into the page cache as a whole: blocks gain nothing.
SMALL_SET = 20_000

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]

# Purposes: each keeps its draws apart from the others'. The numbers are part of the order.
_SHARDS = 0
_WINDOW = 1
_CROP_AREA = 2
_CROP_RATIO = 3
_CROP_X = 4
_CROP_Y = 5
_FLIP = 6
_REPLACE = 7
_SPREAD = 8
_MIX = 9

# Positions over which the sets' shares are exact. A set with less than one of them cannot be mixed.
MIX_CYCLE = 65_536

# How an image that is not square becomes one, and the longest shape that padding makes square.
Fit = Literal["squash", "crop", "pad"]
MAX_PADDED = 4


def splitmix64(counter: Hashes) -> Hashes:
    """Hash 64-bit counters; neighbouring counters give independent-looking values."""
    with np.errstate(over="ignore"):
        mixed = counter + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def draw(*parts: int | Ids | Hashes) -> Hashes:
    """Hash a tuple of integers (scalars or arrays, broadcast) to uniform 64-bit values."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


def draw_uniform(*parts: int | Ids | Hashes) -> NDArray[np.float64]:
    """Hash a tuple of integers to floats in [0, 1), 53 bits each."""
    return (draw(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, key: int) -> Ids:
    """Draw a permutation of range(count) from `key`: the order of the hashes of (key, index)."""
    return np.argsort(draw(key, np.arange(count)), kind="stable").astype(np.int64)


def run_samples_of(num_samples: int) -> int:
    """Return the block size of a set of this size: small sets are shuffled sample by sample."""
    return RUN_SAMPLES if num_samples >= SMALL_SET else 1


class Order:
    """The endless sequence of sample ids over a set of shards.

    Args:
        shard_sizes: Samples in each shard; ids count through the shards in this order.
        seed: Any integer; another seed is another order.
        window_shards: Shards that are shuffled into one another. More shuffles better and needs
            more open files; a constant of the project, since another value is another order.
        run_samples: Samples in a block; None: by the size of the set. 1: a window is shuffled
            sample by sample.
        spread_runs: Blocks in use at a time, among whose samples those of one block are spread.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        seed: int,
        window_shards: int = WINDOW_SHARDS,
        run_samples: int | None = None,
        spread_runs: int = SPREAD_RUNS,
    ) -> None:
        self.seed = seed
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes)])
        self.num_samples = int(self.starts[-1])
        self.num_windows = max(1, -(-len(self.sizes) // window_shards))
        self.run_samples = run_samples or run_samples_of(self.num_samples)
        self.spread_runs = spread_runs

        # A training run stays in one window for long and only moves forward: two remembered epochs
        # and windows save the work without being state.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._window = lru_cache(maxsize=2)(self._draw_window)

    def sample_ids(self, first: int, count: int) -> Ids:
        """Return the ids at positions `first` to `first + count - 1` of the stream, shape (count,).

        Raises:
            OrderError: A negative position, or no samples at all.
        """
        if self.num_samples == 0 or first < 0 or count < 0:
            raise OrderError(
                f"no order for positions {first} to {first + count} of a set of "
                f"{self.num_samples} samples; positions start at 0 and the set must hold a sample."
            )

        # A stretch may cross windows and epochs: one piece for each.
        parts: list[Ids] = []
        position, end = first, first + count
        while position < end:
            epoch, within = divmod(position, self.num_samples)
            bounds = self._epoch(epoch)[1]
            window = int(np.searchsorted(bounds, within, side="right")) - 1

            offset = int(bounds[window])
            stop = min(int(bounds[window + 1]), within + end - position)
            parts.append(self._window(epoch, window)[within - offset : stop - offset])
            position += stop - within
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def draws(self, first: int, count: int) -> Draws:
        """Return the samples at positions `first` to `first + count - 1` of the stream.

        Raises:
            OrderError: As `sample_ids`.
        """
        ids = self.sample_ids(first, count)
        epochs = np.arange(first, first + count) // self.num_samples
        return Draws(ids, epochs, np.zeros_like(ids), np.full_like(ids, self.num_samples))

    def _cut(self, window: int) -> int:
        """Return where a window starts in the drawn shards; even windows, so that none is short."""
        return len(self.sizes) * window // self.num_windows

    def _draw_epoch(self, epoch: int) -> tuple[Ids, Ids]:
        """Return the shards in the epoch's order, and where each window starts (and the end)."""
        shards = permutation(len(self.sizes), int(draw(self.seed, _SHARDS, epoch)[0]))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes[shards])])
        # Even windows: a short last one would be shuffled badly.
        cuts = [self._cut(window) for window in range(self.num_windows + 1)]
        return shards, ends[cuts]

    def _draw_window(self, epoch: int, window: int) -> Ids:
        shards = self._epoch(epoch)[0][self._cut(window) : self._cut(window + 1)]
        of_shards = [np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards]
        ids = np.concatenate(of_shards)

        key = int(draw(self.seed, _WINDOW, epoch, window)[0])
        if self.run_samples == 1:
            return ids[permutation(len(ids), key)]

        # A sample's time is its block's place among the drawn blocks plus a delay of its own.
        blocks = self._blocks(shards)
        starts = permutation(int(blocks[-1]) + 1, key)[blocks]
        times = starts + self.spread_runs * draw_uniform(self.seed, _SPREAD, epoch, ids)
        return ids[np.argsort(times, kind="stable")]

    def _blocks(self, shards: Ids) -> Ids:
        """Return the block of each sample of these shards, from 0; a shard's last may be short."""
        sizes = self.sizes[shards]
        num_blocks = -(-sizes // self.run_samples)
        first_blocks = np.cumsum(num_blocks) - num_blocks
        first_samples = np.cumsum(sizes) - sizes

        within = np.arange(sizes.sum()) - np.repeat(first_samples, sizes)
        blocks: Ids = np.repeat(first_blocks, sizes) + within // self.run_samples
        return blocks


@dataclass(frozen=True)
class Draws:
    """The samples at some positions of the stream.

    Attributes:
        ids: The samples, int64.
        epochs: How often each was due before, int64: crops and flips are drawn from it.
        firsts: First sample of the set that each belongs to, int64: bad samples are replaced from
            there ...
        counts: ... and number of samples of that set, int64.
    """

    ids: Ids
    epochs: Ids
    firsts: Ids
    counts: Ids


class MixedOrder:
    """The endless sequence of sample ids over several sets, mixed by weights.

    Args:
        set_shard_sizes: Samples in each shard, per set; ids count through the sets in this order.
        weights: One positive number per set: its share of the stream is its weight over their sum.
        seed: Any integer.

    Raises:
        OrderError: Not one positive weight per set, a set without samples, or a share under one in
            MIX_CYCLE.
    """

    def __init__(
        self, set_shard_sizes: Sequence[Sequence[int]], weights: Sequence[float], seed: int
    ) -> None:
        _check_weights(set_shard_sizes, weights)
        sizes = np.array([sum(each) for each in set_shard_sizes], np.int64)
        self.num_samples = int(sizes.sum())
        self.run_samples = run_samples_of(self.num_samples)

        self._seed = seed
        self._sizes = sizes
        self._firsts = np.cumsum(sizes) - sizes
        # Sets of the same shape must not be shuffled alike: each has a seed of its own.
        self._orders = [
            Order(
                each, int(draw(seed, _MIX, index)[0] >> np.uint64(1)), run_samples=self.run_samples
            )
            for index, each in enumerate(set_shard_sizes)
        ]
        self._per_cycle = _apportioned(weights)
        self._owners = np.repeat(np.arange(len(weights)), self._per_cycle)
        self._cycle = lru_cache(maxsize=2)(self._draw_cycle)

    def draws(self, first: int, count: int) -> Draws:
        """Return the samples at positions `first` to `first + count - 1` of the stream.

        Raises:
            OrderError: A negative position.
        """
        if first < 0 or count < 0:
            raise OrderError(f"no order for positions {first} to {first + count}.")

        positions = np.arange(first, first + count)
        owners = np.empty(count, np.int64)
        turns = np.empty(count, np.int64)
        for cycle in range(first // MIX_CYCLE, (first + count - 1) // MIX_CYCLE + 1):
            here = positions // MIX_CYCLE == cycle
            within = positions[here] - cycle * MIX_CYCLE
            of_cycle, ranks = self._cycle(cycle)
            owners[here] = of_cycle[within]
            turns[here] = cycle * self._per_cycle[of_cycle[within]] + ranks[within]

        ids = np.empty(count, np.int64)
        for owner in np.unique(owners):
            here = owners == owner
            # A set's turns within a stretch of the stream follow one another without a gap.
            own = self._orders[owner].sample_ids(int(turns[here][0]), int(here.sum()))
            ids[here] = self._firsts[owner] + own
        return Draws(ids, turns // self._sizes[owners], self._firsts[owners], self._sizes[owners])

    def _draw_cycle(self, cycle: int) -> tuple[Ids, Ids]:
        """Return the set at each position of a cycle, and how many of its turns came before it."""
        places = permutation(MIX_CYCLE, int(draw(self._seed, _MIX, -1, cycle)[0]))
        owners = self._owners[places]

        ranks = np.empty(MIX_CYCLE, np.int64)
        for owner, number in enumerate(self._per_cycle):
            ranks[owners == owner] = np.arange(number)
        return owners, ranks


def _check_weights(set_shard_sizes: Sequence[Sequence[int]], weights: Sequence[float]) -> None:
    if len(weights) != len(set_shard_sizes):
        raise OrderError(
            f"{len(weights)} weights for {len(set_shard_sizes)} folders; give one weight per "
            "folder."
        )
    if not all(0.0 < weight < math.inf for weight in weights):
        raise OrderError(f"weights {list(weights)}: each must be a positive number.")
    if not all(sum(sizes) for sizes in set_shard_sizes):
        raise OrderError("a folder without samples cannot be mixed with others; leave it out.")

    least = min(weights) / math.fsum(weights)
    if least * MIX_CYCLE < 1.0:
        raise OrderError(
            f"weights {list(weights)}: the smallest is {least:.2g} of their sum, less than one "
            f"sample in {MIX_CYCLE:,}; leave that folder out or raise its weight."
        )


def _apportioned(weights: Sequence[float]) -> Ids:
    """Return each set's positions per cycle: its share, rounded so that they add up to it.

    Largest remainders get the positions that rounding down leaves over (Hamilton's method).
    """
    # fsum: the same sum in whatever order weights are given.
    shares = np.array(weights, np.float64) / math.fsum(weights) * MIX_CYCLE
    numbers = np.floor(shares).astype(np.int64)
    left = MIX_CYCLE - int(numbers.sum())
    largest = np.argsort(numbers - shares, kind="stable")[:left]
    numbers[largest] += 1
    return numbers


@dataclass(frozen=True)
class RankSlice:
    """One rank's part of each global batch.

    Attributes:
        offset: Its first sample within the global batch.
        num_micro_batches: Micro-batches from there on.
        micro_batch_size: Samples in each.
    """

    offset: int
    num_micro_batches: int
    micro_batch_size: int


def rank_slice(
    global_batch_size: int, micro_batch_size: int, rank: int, world_size: int
) -> RankSlice:
    """Cut a global batch into micro-batches and give each rank an equal number of them.

    The micro-batches are the same for every number of ranks; only who takes them differs.

    Raises:
        OrderError: Sizes that are not positive or do not divide, or a rank outside the world.
    """
    if min(global_batch_size, micro_batch_size, world_size) < 1 or not 0 <= rank < world_size:
        raise OrderError(
            f"global batch {global_batch_size}, micro-batch {micro_batch_size}, rank {rank} of "
            f"{world_size}: sizes must be at least 1, and ranks count from 0."
        )

    if global_batch_size % (micro_batch_size * world_size):
        raise OrderError(
            f"a global batch of {global_batch_size} cannot be cut into micro-batches of "
            f"{micro_batch_size} on {world_size} ranks; make it a multiple of "
            f"{micro_batch_size * world_size}."
        )

    number = global_batch_size // (micro_batch_size * world_size)
    return RankSlice(rank * number * micro_batch_size, number, micro_batch_size)


def flips(seed: int, epochs: Ids, ids: Ids) -> NDArray[np.int32]:
    """Draw 0 or 1 for each (epoch, sample), with even odds."""
    return (draw(seed, _FLIP, epochs, ids) >> np.uint64(63)).astype(np.int32)


def crop_windows(
    seed: int, epochs: Ids, ids: Ids, heights: Ids, widths: Ids, random_crop_min_area: float
) -> NDArray[np.int32]:
    """Draw the window (y, x, height, width) in pixels to crop from each image, shape (N, 4).

    Its area is uniform in [random_crop_min_area, 1] of the image's, its shape the image's times a
    ratio that is log-uniform in [3/4, 4/3] (as in Inception training), narrowed where it would not
    fit. With `random_crop_min_area` 1 it is the whole image.
    """

    def uniform(purpose: int) -> NDArray[np.float64]:
        return draw_uniform(seed, purpose, epochs, ids)

    def side(lengths: Ids, share: NDArray[np.float64]) -> Ids:
        return np.clip(np.rint(lengths * np.sqrt(share)).astype(np.int64), 1, lengths)

    area = 1.0 - (1.0 - random_crop_min_area) * uniform(_CROP_AREA)
    widest = np.minimum(np.log(4 / 3), -np.log(area))
    ratio = np.exp(widest * (2.0 * uniform(_CROP_RATIO) - 1.0))

    window_heights = side(heights, area / ratio)
    window_widths = side(widths, area * ratio)
    tops = (uniform(_CROP_Y) * (heights - window_heights + 1)).astype(np.int64)
    lefts = (uniform(_CROP_X) * (widths - window_widths + 1)).astype(np.int64)
    return np.stack([tops, lefts, window_heights, window_widths], axis=1).astype(np.int32)


def fitted_windows(windows_N4: NDArray[np.int32], fit: Fit) -> NDArray[np.int32]:
    """Return the windows (y, x, height, width) that a square output is made of, shape (N, 4).

    `squash` leaves them as they are. `crop` takes the square in the middle. `pad` takes the square
    around: it reaches beyond the picture, on both sides alike. What is longer than MAX_PADDED to 1
    is padded to that shape only, and squashed: a strip of few pixels would become a huge square.
    """
    tops, lefts, heights, widths = windows_N4.T
    if fit == "squash":
        return windows_N4

    shorter = np.minimum(heights, widths)
    if fit == "crop":
        new_heights = new_widths = shorter
    else:
        side = np.minimum(np.maximum(heights, widths), MAX_PADDED * shorter)
        new_heights, new_widths = np.maximum(heights, side), np.maximum(widths, side)

    tops = tops + (heights - new_heights) // 2
    lefts = lefts + (widths - new_widths) // 2
    return np.stack([tops, lefts, new_heights, new_widths], axis=1).astype(np.int32)


def replacement(
    seed: int, epoch: int, sample_id: int, attempt: int, num_samples: int, first: int = 0
) -> int:
    """Return the sample that replaces a bad one in its `attempt`-th try (from 1), on every rank.

    It is one of the `num_samples` samples from `first` on.
    """
    drawn = draw(seed, _REPLACE, epoch, sample_id, attempt)[0] % np.uint64(num_samples)
    return first + int(drawn)
