"""How long a device waits for the loader when a step takes many micro-batches.

    python benchmarks/accumulation.py [--device_ms 4] [--decoder_ms 2] [--steps 12]

A decoder that sleeps feeds the loader's own queue (shards/loading/stream.py); a device that sleeps
consumes it, a step at a time, as gradient accumulation does. The decoder is faster than the device,
so a device that waits is waiting for the queue: it is too short for a step. Printed per number of
micro-batches in a step: the share of the time that the device is idle, with a queue of 2, as it
would be without regard to the step, and with the loader's. Sleeps are longer than asked for on a
busy machine; the ratios hold. tests/shards/loading/test_stream.py proves the same without a clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.loading.loader import queue_length
from shards.loading.micro_batches import Plan
from shards.loading.stream import Stream
from shards.order import Draws

MICRO_BATCHES_PER_STEP = (1, 4, 16, 64)


class SleepingMaker:
    """Makes nothing, in a fixed time each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def make(self, plans: Iterator[Plan]) -> Iterator[Any]:
        """Yield each plan after the time that decoding takes."""
        for plan in plans:
            time.sleep(self.seconds)
            yield plan

    def abort(self) -> None:
        """Do nothing: `make` never waits for long."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


def idle_share(
    num_micro_batches: int, max_ready: int, decoder_s: float, device_s: float, num_steps: int
) -> float:
    """Return the share of the time that the device waits for the loader."""
    one = np.zeros(1, np.int64)
    plan = Plan(one, Draws(one, one, one, one))
    plans = iter([plan] * num_micro_batches * (num_steps + 1))
    maker: Any = SleepingMaker(decoder_s)
    # The product's own queue: only decoder and device are stand-ins.
    stream = Stream(maker, plans, max_ready)
    stream.start()

    # The first step fills the pipeline and is not counted.
    waited_s = worked_s = 0.0
    for step in range(num_steps + 1):
        begin = time.perf_counter()
        for _ in range(num_micro_batches):
            stream.next()
        ready = time.perf_counter()
        # The device takes a step as a whole, once its batches are there.
        time.sleep(num_micro_batches * device_s)

        if step > 0:
            waited_s += ready - begin
            worked_s += time.perf_counter() - ready
    stream.close()
    return waited_s / (waited_s + worked_s)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device_ms", type=float, default=4.0, help="per micro-batch")
    parser.add_argument("--decoder_ms", type=float, default=2.0, help="per micro-batch")
    parser.add_argument("--steps", type=int, default=12)
    settings = parser.parse_args()

    decoder_s, device_s = settings.decoder_ms / 1e3, settings.device_ms / 1e3
    print("micro-batches per step    queue of 2    loader's queue")
    for number in MICRO_BATCHES_PER_STEP:
        short = idle_share(number, 2, decoder_s, device_s, settings.steps)
        ours = idle_share(
            number,
            queue_length(2, number),
            decoder_s,
            device_s,
            settings.steps,
        )
        print(f"{number:22}{short:14.0%}{ours:18.0%}")


if __name__ == "__main__":
    main()
