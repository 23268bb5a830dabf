"""What the ranks' hang reports say together: which rank differs. Pure functions of what `watchdog.py` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUMMARY = "summary.txt"
MAX_REPORT_BYTES = 4 << 20


@dataclass(frozen=True)
class RankStatus:
    """Where a rank was: from its report (then `stack` is its main thread's, innermost last) or its last beat."""

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

    @property
    def waits(self) -> bool:
        """Whether the main thread was inside a collective call of torch."""
        return any("torch/distributed" in line for line in self.stack or ())


def read_standing(path: Path) -> RankStatus | None:
    """Read a report or a beat; None where there is none, or half of one."""
    try:
        data = json.loads(path.read_bytes()[:MAX_REPORT_BYTES])
        names = ("rank", "host", "process", "started", "point", "number", "step", "images_seen")
        return RankStatus(
            **{name: data[name] for name in names},
            last_collective=data["last_collective"],
            idle_s=data["idle_s"],
            time=data["time"],
            sample_positions=tuple(data["sample_positions"]),
            stack=tuple(data["stacks"]["MainThread"]) if "stacks" in data else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summary_text(standings: Sequence[RankStatus | None], patience_s: float) -> str:
    """Return the summary: the rank that differs, then a line a rank."""
    lines = [f"The run hung: no rank moved for {patience_s:.0f} s. {verdict(standings)}", ""]
    for rank, standing in enumerate(standings):
        lines.append(_line(rank, standing))
    return "\n".join(lines) + "\n"


def verdict(standings: Sequence[RankStatus | None]) -> str:
    """Return one sentence that names the ranks that differ from the others, and how."""
    known = [standing for standing in standings if standing is not None]
    unknown = [rank for rank, standing in enumerate(standings) if standing is None]
    silent = [standing for standing in known if standing.stack is None]
    if unknown:
        return f"{_ranks(unknown)} unknown: no report and no beat."
    if silent and len(silent) < len(known):
        latest = max(standing.time for standing in known)
        return " ".join(
            f"Rank {s.rank} does not answer (process {s.process} on {s.host} is stopped, killed or cut off): last "
            f"heard of {max(0.0, latest - s.time):.1f} s before, at '{s.point}' of step {s.step}."
            for s in silent
        )
    first = min((standing.images_seen, standing.number) for standing in known)
    behind = [s for s in known if (s.images_seen, s.number) == first]
    if len(behind) < len(known):
        ahead = next(s for s in known if s not in behind)
        return (
            f"{_ranks([s.rank for s in behind])} behind: at '{behind[0].point}' of step {behind[0].step}, where the "
            f"others have gone on to '{ahead.point}' of step {ahead.step}."
        )
    return _by_stack(known)


def _by_stack(known: list[RankStatus]) -> str:
    """All ranks are at the same point: tell them apart by the call that their main thread is in."""
    place = f"at '{known[0].point}' of step {known[0].step}"
    busy = [s for s in known if not s.waits]
    if 0 < len(busy) < len(known):
        return f"All are {place}, but {_ranks([s.rank for s in busy])} in {_call(busy[0])}, not in a collective call."
    calls = Counter(_call(s) for s in known)
    usual = calls.most_common(1)[0][0]
    others = [s for s in known if _call(s) != usual]
    if others:
        return f"All are {place}, but {_ranks([s.rank for s in others])} in {_call(others[0])} and not in {usual}."
    return f"All ranks stand {place} in the same call, {usual}: they wait for the network, the disk or the device."


def _call(standing: RankStatus) -> str:
    return standing.stack[-1] if standing.stack else "an unknown call"


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"Rank {numbers[0]} is"
    return f"Ranks {', '.join(map(str, numbers[:8]))}{', ...' if len(numbers) > 8 else ''} are"


def _line(rank: int, standing: RankStatus | None) -> str:
    if standing is None:
        return f"rank {rank}: nothing known"
    slots = standing.sample_positions
    return (
        f"rank {rank} ({standing.host}, process {standing.process}): '{standing.point}', step {standing.step}, "
        f"{standing.images_seen} images seen"
        + (f", sample positions {slots[0]} to {slots[-1]}" if slots else "")
        + f", still for {standing.idle_s:.1f} s, last collective: {standing.last_collective}, "
        + (f"in {_call(standing)}" if standing.stack is not None else "no report")
    )
