"""How well the order shuffles, and what it asks of the disk: seeks a second of one rank's reads.

    python benchmarks/order.py [--samples 1281167] [--per_shard 1000] [--bytes 30000] [--images_per_s 1000]

Computed, not timed: from the order (shards/order.py) and from where samples of so many bytes lie in their shards. A
read is a seek unless it begins in the file of the one before it, at most READAHEAD bytes behind that one's end (the
system has read that far already). The members of a sample lie side by side and count as one read.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.order import WINDOW_SHARDS, Order, rank_share

READAHEAD = 128 * 1024  # Linux's default for a file that is read in turn
NUM_READS = 500_000
GLOBAL_BATCH, MICRO_BATCH = 256, 32


def main() -> None:
    """Print one line a window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--per_shard", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=30_000, help="a sample's size; 30 kB: 256x256, quality 95")
    parser.add_argument("--images_per_s", type=float, default=1000.0, help="of one rank")
    settings = parser.parse_args()
    sizes = [min(settings.per_shard, settings.samples - at) for at in range(0, settings.samples, settings.per_shard)]
    print(f"{settings.samples:,} samples of {settings.bytes:,} bytes in {len(sizes):,} shards; rank 0 of 1 and of 8,")
    print(f"at {settings.images_per_s:g} images/s. Perfect: displacement 0.3333, correlation 0.\n")
    columns = ("window", "displacement / n", "correlation", "seeks/image", "seeks/s, 1", "seeks/s, 8")
    print("  ".join(columns))
    for window in sorted({1, 16, 64, WINDOW_SHARDS, len(sizes)}):
        order = Order(sizes, 0, window)
        ids = order.sample_ids(0, settings.samples)
        displacement = np.abs(ids - np.arange(settings.samples)).mean() / settings.samples
        correlation = np.corrcoef(ids[:-1], ids[1:])[0, 1]
        shares = [seek_share(reads_of(order, world), settings.per_shard, settings.bytes) for world in (1, 8)]
        cells = [f"{window}", f"{displacement:.4f}", f"{correlation:.4f}", f"{shares[0]:.4f}"]
        cells += [f"{share * settings.images_per_s:.0f}" for share in shares]
        aligned = [f"{cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=True)]
        print("  ".join(aligned) + ("  <- WINDOW_SHARDS" if window == WINDOW_SHARDS else ""))


def reads_of(order: Order, world_size: int) -> NDArray[np.int64]:
    """The samples that rank 0 reads, in turn."""
    share = rank_share(GLOBAL_BATCH, MICRO_BATCH, 0, world_size)
    number = share.num_micro_batches * MICRO_BATCH
    count = min(NUM_READS, order.num_samples * number // GLOBAL_BATCH)
    firsts = range(0, count // number * GLOBAL_BATCH, GLOBAL_BATCH)
    return np.concatenate([order.sample_ids(first + share.offset, number) for first in firsts])


def seek_share(ids: NDArray[np.int64], per_shard: int, sample_bytes: int) -> float:
    """Seeks per read."""
    shards, offsets = ids // per_shard, ids % per_shard * sample_bytes
    gaps = offsets[1:] - (offsets[:-1] + sample_bytes)
    in_turn = (shards[1:] == shards[:-1]) & (gaps >= 0) & (gaps <= READAHEAD)
    return 1.0 - float(in_turn.mean())


if __name__ == "__main__":
    main()
