"""The record of samples that could not be used: counted, named in the log, and limited.

Used by shards/loading/stream.py. A few bad samples in a million must not stop a run; many must.
"""

import logging
import threading
from dataclasses import dataclass

from shards.errors import LoadError

logger = logging.getLogger("shards")

# Under this many, one bad sample in a small set, or early in a run, would count as a large share.
MIN_BAD = 8
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Replaced:
    """One sample that could not be used.

    Attributes:
        slot: The position it should have had (as in `Batch.positions_B`).
        sample_id: The bad sample.
        used: The sample tried in its place; None where it is left out (evaluation).
        reason: Why it cannot be used, with its file.
    """

    position: int
    sample_id: int
    used: int | None
    reason: str


class BadSamples:
    """Counts samples and faults of one loader, from any thread."""

    def __init__(self, max_bad_share: float) -> None:
        self._max_bad_share = max_bad_share
        self._lock = threading.Lock()
        self.num_drawn = 0
        self.replaced: list[Replaced] = []

    def count_drawn(self, number: int) -> None:
        """Note that so many samples were asked for."""
        with self._lock:
            self.num_drawn += number

    def add(self, fault: Replaced) -> None:
        """Note a bad sample.

        Raises:
            LoadError: It is one too many: more than MIN_BAD, and over the share of the samples drawn so far.
        """
        with self._lock:
            self.replaced.append(fault)
            number, allowed = len(self.replaced), self._allowed()
        instead = "it is left out" if fault.used is None else f"sample {fault.used} takes its place"
        logger.warning(
            "sample %d at position %d: %s; %s",
            fault.sample_id,
            fault.position,
            fault.reason,
            instead,
        )
        if number > allowed:
            raise LoadError(self._report())

    def _allowed(self) -> float:
        return max(MIN_BAD, self._max_bad_share * self.num_drawn) if self._max_bad_share > 0 else 0

    def _report(self) -> str:
        named = "; ".join(
            f"sample {bad.sample_id} ({bad.reason})" for bad in self.replaced[:_MAX_NAMED]
        )
        more = len(self.replaced) - _MAX_NAMED
        rest = f"; and {more} more, all named in the log" if more > 0 else ""
        return (
            f"{len(self.replaced)} of the first {self.num_drawn} samples cannot be used, over the allowed "
            f"share of {self._max_bad_share:.2%}: {named}{rest}. Check the shards with python "
            "launcher/pack.py --verify DIR."
        )
