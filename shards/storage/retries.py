"""One retry policy for disks and networks: when to try again, and when to give up.

Used by shards/storage/transfer.py (URLs) and shards/loading/members.py (files).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """How often and for how long something that fails is tried.

    Attributes:
        num_tries: Tries in all, at least 1.
        wait_s: Seconds before the second try; doubled before each later one.
        stall_s: Seconds without a byte after which a try has failed.
        base_s: Seconds that all tries at one file may take, plus the file's size at `bytes_per_s`.
        bytes_per_s: The slowest transfer that is accepted.
    """

    num_tries: int = 5
    wait_s: float = 1.0
    stall_s: float = 30.0
    base_s: float = 120.0
    bytes_per_s: float = 250_000.0

    def pause_s(self, attempt: int) -> float:
        """Return the seconds to wait after the `attempt`-th failure (from 1)."""
        # Doubled: what failed twice needs longer than what failed once.
        return self.wait_s * 2.0 ** (attempt - 1)

    def limit_s(self, size: int) -> float:
        """Return the seconds that a file of `size` bytes may take in all."""
        return self.base_s + size / self.bytes_per_s


# A whole file over a network: an object store may be busy for a minute.
FETCH_RETRIES = RetryPolicy()
# One read of an open file: network file systems fail for a moment and come back.
READ_RETRIES = RetryPolicy(num_tries=3, wait_s=0.05, stall_s=60.0)
