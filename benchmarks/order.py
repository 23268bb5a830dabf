"""Measure how well the order shuffles, and a node's disk seeks for runs of 1 and RUN_SAMPLES.

    python benchmarks/order.py [--samples 1281167] [--per_shard 1000] [--bytes 30000]
    [--images_per_s 1000]

Computed, not timed: from the order (shards/order.py), over an epoch. A seek is a run that the ranks
of a node begin to read (shards/loading/run_reads.py); its other samples cost none, as long as the
page cache keeps what the node has fetched for the last run x spread samples of the stream: the last
column says how much that is. `peak` is seeks/image over the worst 4,096 images (a window's first),
the first of all left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.order import RUN_SAMPLES, SPREAD_RUNS, WINDOW_SHARDS, Order

GLOBAL_BATCH, PEAK_OVER = 256, 4096
COLUMNS = (
    "window",
    "run",
    "spread",
    "displacement / n",
    "correlation",
    "of one run",
    "classes/batch",
    "ranks x nodes",
)
COLUMNS += ("seeks/image", "peak", "seeks/s of a node", "cache, MB")
CASES = [
    (WINDOW_SHARDS, 1, 1),
    (WINDOW_SHARDS, RUN_SAMPLES, SPREAD_RUNS),
    (WINDOW_SHARDS, RUN_SAMPLES, 512),
]
NODES = [(1, 1), (8, 1), (16, 2)]  # ranks, nodes


def main() -> None:
    """Print one line for each order and number of ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--per_shard", type=int, default=1000)
    parser.add_argument(
        "--bytes", type=int, default=30_000, help="a sample's size; 30 kB: 256x256, quality 95"
    )
    parser.add_argument("--images_per_s", type=float, default=1000.0, help="of one rank")
    settings = parser.parse_args()
    number, per_shard = settings.samples, settings.per_shard
    sizes = [min(per_shard, number - at) for at in range(0, number, per_shard)]
    print(
        f"{number:,} samples of {settings.bytes:,} bytes in {len(sizes):,} shards, "
        f"{settings.images_per_s:g} images/s"
    )

    print(
        "per rank. Perfect: displacement 0.3333, correlation 0; 226 of 1,000 classes that are "
        "stored one after the other.\n"
    )

    print("  ".join(COLUMNS))

    for window, run, spread in CASES:
        # One epoch of one seed: with a million samples the figures hardly depend on it.
        ids = Order(sizes, 0, window, run, spread).sample_ids(0, number)
        runs = (
            ids // per_shard * per_shard + ids % per_shard // run
        )  # a name for each: that of a sample of its shard
        quality = [
            f"{window}",
            f"{run}",
            f"{spread}",
            f"{np.abs(ids - np.arange(number)).mean() / number:.4f}",
        ]
        quality += [
            f"{np.corrcoef(ids[:-1], ids[1:])[0, 1]:.4f}",
            f"{np.mean(runs[1:] == runs[:-1]):.3%}",
        ]
        quality += [f"{classes_of_batches(ids, -(-number // 1000)):.0f}"]
        for ranks, nodes in NODES:
            seeks = seeks_of_node(runs, nodes, run * spread)
            # A moving mean: a disk's queue evens out a burst of some seconds.
            worst = np.convolve(seeks, np.ones(PEAK_OVER) / PEAK_OVER, "valid")[PEAK_OVER:].max(
                initial=0.0
            )
            rate = seeks.mean() * settings.images_per_s * ranks / nodes
            cells = [
                *quality,
                f"{ranks} x {nodes}",
                f"{seeks.mean():.3f}",
                f"{worst:.2f}",
                f"{rate:,.0f}",
            ]
            cells.append(f"{run * spread * settings.bytes / 1e6:.0f}")
            print(
                "  ".join(
                    f"{cell:>{len(column)}}" for cell, column in zip(cells, COLUMNS, strict=True)
                )
            )


def classes_of_batches(ids: NDArray[np.int64], class_size: int) -> float:
    """Classes in a batch, on average, where samples lie class by class."""
    classes = (ids // class_size)[: len(ids) // GLOBAL_BATCH * GLOBAL_BATCH].reshape(
        -1, GLOBAL_BATCH
    )
    # Sorted, neighbours that differ count the classes.
    classes = np.sort(classes, axis=1)
    return float((np.diff(classes, axis=1) > 0).sum(axis=1).mean() + 1)


def seeks_of_node(runs: NDArray[np.int64], num_nodes: int, kept: int) -> NDArray[np.bool_]:
    """Return which reads of the first node are seeks.

    A seek reads a run that none of the `kept` samples before it in the stream has begun.
    """
    positions = np.flatnonzero(np.arange(len(runs)) % GLOBAL_BATCH < GLOBAL_BATCH // num_nodes)
    begun: dict[int, int] = {}
    seeks = np.zeros(len(positions), np.bool_)
    for read, (position, run) in enumerate(
        zip(positions.tolist(), runs[positions].tolist(), strict=True)
    ):
        if position - begun.get(run, -kept - 1) > kept:
            seeks[read], begun[run] = True, position

    return seeks


if __name__ == "__main__":
    main()
