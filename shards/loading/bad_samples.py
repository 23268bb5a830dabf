"""Counts, logs and limits the samples that could not be used.

Used by shards/loading/micro_batches.py. A few bad samples in a million must not stop a run; many
must.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from shards.errors import LoadError

logger = logging.getLogger("shards")

# Up to this many are always allowed: in a small set, or early in a run, one is already a large
# share.
MIN_BAD = 8
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Replaced:
    """One sample that could not be used.

    Attributes:
        position: Where it belonged (as in `Batch.positions_B`).
        sample_id: The bad sample.
        used: The sample tried in its place; None if it is left out (evaluation).
        reason: Why it cannot be used, with its file.
    """

    position: int
    sample_id: int
    used: int | None
    reason: str


class BadSamples:
    """The bad samples of one loader; used from any thread.

    Args:
        max_bad_share: Bad samples allowed, as a share of the samples drawn so far.
    """

    def __init__(self, max_bad_share: float) -> None:
        self._max_bad_share = max_bad_share
        self._lock = threading.Lock()
        self._num_drawn = 0
        self._replaced: list[Replaced] = []

    @property
    def replaced(self) -> list[Replaced]:
        """Return the bad samples so far, in the order in which they were met."""
        with self._lock:
            return list(self._replaced)

    def count_drawn(self, number: int) -> None:
        """Count samples that were asked for, good or bad."""
        with self._lock:
            self._num_drawn += number

    def add(self, bad: Replaced) -> None:
        """Record and log a bad sample.

        Raises:
            LoadError: More than MIN_BAD samples are bad, and more than the allowed share.
        """
        instead = "left out" if bad.used is None else f"replaced by sample {bad.used}"
        # Outside the lock: a slow log must not hold up the reading threads.
        logger.warning(
            "sample %d at position %d: %s; %s", bad.sample_id, bad.position, bad.reason, instead
        )

        with self._lock:
            self._replaced.append(bad)
            # Judged under the lock that adds, so that two threads cannot both be the last allowed
            # one.
            too_many = len(self._replaced) > self._allowed()
            report = self._report() if too_many else ""
        if too_many:
            raise LoadError(report)

    def _allowed(self) -> float:
        # Zero means none at all, without the handful that other shares allow.
        if self._max_bad_share == 0:
            return 0.0
        return max(MIN_BAD, self._max_bad_share * self._num_drawn)

    def _report(self) -> str:
        number = len(self._replaced)
        named = [f"sample {bad.sample_id} ({bad.reason})" for bad in self._replaced[:_MAX_NAMED]]
        if number > _MAX_NAMED:
            named.append(f"and {number - _MAX_NAMED} more, all of them in the log")

        return (
            f"{number} of the first {self._num_drawn} samples cannot be used, over the allowed "
            f"share of {self._max_bad_share:.2%}: {'; '.join(named)}. Check the shards with python "
            "launcher/pack.py --verify DIR."
        )
