"""Compare the ranks' hang reports: which one differs. Pure functions of `watchdog.py`'s files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorgan.files import number, short, whole

SUMMARY = "summary.txt"
MAX_REPORT_BYTES = 4 << 20
MAX_LINE = 400
# Source lines that wait for all queued work of a GPU. NCCL's calls return at once: a rank that
# waits for a peer is found in one of these.
DEVICE_WAIT = re.compile(r"\.(item|cpu|tolist|numpy|to|synchronize)\(|\b(float|int|bool)\(")


@dataclass(frozen=True)
class RankStatus:
    """Where a rank was, from its report or else its last beat.

    Attributes:
        started: When the process began, in clock ticks since its machine's boot.
        number: How many points the rank had passed.
        sample_positions: First and last position in the training order.
        stack: From a report: the main thread's stack, innermost line last.
        device: "cpu" or "cuda".
        error: Why the rank ended, if an error ended it.
    """

    rank: int
    host: str
    process: int
    started: int
    point: str
    number: int
    step: int
    images_seen: int
    last_collective: str
    idle_s: float
    time: float
    sample_positions: tuple[int, ...] = ()
    stack: tuple[str, ...] | None = None
    device: str = "cpu"
    error: str = ""

    @property
    def waits(self) -> bool:
        """Whether the main thread waited for other ranks: in a collective call, or for the GPU."""
        stack = self.stack or ()
        # By file: the names of collective functions differ from version to version.
        if any("torch/distributed" in line for line in stack):
            return True
        return self.device == "cuda" and bool(stack) and bool(DEVICE_WAIT.search(stack[-1]))


def read_status(path: Path) -> RankStatus | None:
    """Read a report or a beat; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            # A beat is padded with spaces, which JSON ignores.
            data = json.loads(file.read(MAX_REPORT_BYTES))
        return _status(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _status(data: Mapping[str, Any]) -> RankStatus:
    counts = {}
    for name in ("rank", "process", "started", "number", "step", "images_seen"):
        count = whole(data[name])
        if count is None:
            raise ValueError(name)
        counts[name] = count

    seconds = {name: number(data[name]) for name in ("idle_s", "time")}
    idle_s, time = seconds["idle_s"], seconds["time"]
    if idle_s is None or time is None:
        raise ValueError("seconds")

    stack = None
    if "stacks" in data:
        stack = tuple(short(line, MAX_LINE) for line in data["stacks"]["MainThread"])
    positions = [whole(position) for position in data["sample_positions"]]
    return RankStatus(
        **counts,
        host=short(data["host"]),
        point=short(data["point"]),
        last_collective=short(data["last_collective"]),
        idle_s=idle_s,
        time=time,
        sample_positions=tuple(position for position in positions if position is not None),
        stack=stack,
        device=short(data.get("device", "cpu")),
        error=short(data.get("error", ""), MAX_LINE),
    )


def summary_text(statuses: Sequence[RankStatus | None], patience_s: float) -> str:
    """Return the summary: the rank that differs, then one line per rank."""
    lines = [f"The run hung: no rank moved for {patience_s:.0f} s. {verdict(statuses)}", ""]
    for rank, status in enumerate(statuses):
        lines.append(_line(rank, status))
    return "\n".join(lines) + "\n"


def verdict(statuses: Sequence[RankStatus | None]) -> str:
    """Return one sentence that names the ranks that differ from the others, and how."""
    # From the surest sign to the weakest: each test is only worth asking if those before say
    # nothing.
    unknown = [rank for rank, status in enumerate(statuses) if status is None]
    if unknown:
        return f"{_ranks(unknown)} unknown: no report and no beat."

    known = [status for status in statuses if status is not None]
    silent = [status for status in known if status.stack is None]
    if silent and len(silent) < len(known):
        latest = max(status.time for status in known)
        return " ".join(_silent(status, latest) for status in silent)

    # The number of points passed, as names of points repeat.
    first = min((status.images_seen, status.number) for status in known)
    behind = [status for status in known if (status.images_seen, status.number) == first]
    if len(behind) < len(known):
        ahead = next(status for status in known if status not in behind)
        return (
            f"{_ranks([status.rank for status in behind])} behind: at '{behind[0].point}' of step "
            f"{behind[0].step}, while the others are at '{ahead.point}' of step {ahead.step}."
        )
    return _by_stack(known)


def _silent(status: RankStatus, latest: float) -> str:
    age_s = max(0.0, latest - status.time)
    return (
        f"Rank {status.rank} does not answer (process {status.process} on {status.host} is "
        f"stopped, killed or cut off): its last sign was {age_s:.1f} s before, at '{status.point}' "
        f"of step {status.step}."
    )


def _by_stack(known: list[RankStatus]) -> str:
    """Tell ranks at the same point apart by the call that their main thread is in."""
    place = f"at '{known[0].point}' of step {known[0].step}"
    busy = [status for status in known if not status.waits]
    if 0 < len(busy) < len(known):
        who = _ranks([status.rank for status in busy])
        return (
            f"All are {place}, but {who} in {_call(busy[0])}, which does not wait for other ranks."
        )

    calls = Counter(_call(status) for status in known)
    usual = calls.most_common(1)[0][0]
    others = [status for status in known if _call(status) != usual]
    if others:
        who = _ranks([status.rank for status in others])
        return f"All are {place}, but {who} in {_call(others[0])} and not in {usual}."
    return (
        f"All ranks are {place} in the same call, {usual}: they wait for the network, the disk or "
        "the device."
    )


def _call(status: RankStatus) -> str:
    return status.stack[-1] if status.stack else "an unknown call"


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"Rank {numbers[0]} is"
    more = ", ..." if len(numbers) > 8 else ""
    return f"Ranks {', '.join(map(str, numbers[:8]))}{more} are"


def _line(rank: int, status: RankStatus | None) -> str:
    if status is None:
        return f"rank {rank}: nothing known"

    positions = status.sample_positions
    parts = [
        f"rank {rank} ({status.host}, process {status.process}): '{status.point}'",
        f"step {status.step}",
        f"{status.images_seen} images seen",
        f"sample positions {positions[0]} to {positions[-1]}" if positions else "",
        f"idle for {status.idle_s:.1f} s",
        f"last collective: {status.last_collective}",
        f"in {_call(status)}" if status.stack is not None else "no report",
    ]
    return ", ".join(part for part in parts if part)
