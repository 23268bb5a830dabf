"""What the steps of a study cost in core-minutes: measured afterwards, estimated beforehand.

    <step>.cost.json    seconds of wall time, core_seconds of all processes that the step started

An estimate is a complete step's own measured cost, else the mean of complete steps of the same
kind, else the value in the recipe (`expected_core_minutes`), which holds for the machine on which
the recipe was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from colorgan.files import number, read_json
from colorgan.study.steps import IN_PROCESS, Step

ENDING = ".cost.json"


def write_cost(folder: Path, step: Step, seconds: float, core_seconds: float) -> None:
    """Write what a step has cost; a step that was stopped and resumed adds up."""
    path = folder / f"{step.file_name}{ENDING}"
    # A resumed step has paid for its first part too.
    before = read_json(path)
    cost = {
        "name": step.name,
        "seconds": seconds + (number(before.get("seconds")) or 0.0),
        "core_seconds": core_seconds + (number(before.get("core_seconds")) or 0.0),
    }
    path.write_text(json.dumps(cost) + "\n")


def read_costs(folder: Path) -> dict[str, float]:
    """Return the core-minutes of each step that has run, by name."""
    minutes = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        cost = read_json(path)
        core_seconds = number(cost.get("core_seconds"))
        if core_seconds is not None:
            # By the name inside, as file names replace slashes and blanks.
            minutes[str(cost.get("name"))] = core_seconds / 60
    return minutes


def kinds_of(step: Step) -> tuple[str, str]:
    """Return what steps of like cost share, the closest kin first.

    They are arm, command and protocol, in which steps differ in their seed alone, then command and
    protocol.
    """
    protocol, _, unit = step.name.rpartition("/")
    arm = unit.partition("@")[0]
    return f"{step.command} {protocol} {arm}", f"{step.command} {protocol}"


def estimates(
    steps: Sequence[Step], folder: Path, complete: Collection[str], expected: Mapping[str, float]
) -> dict[str, float | None]:
    """Return the core-minutes of each step, estimated where it is not complete; None: unknown.

    Args:
        steps: of the study.
        folder: of the steps, with the costs of those that have run.
        complete: names of the steps that need not run again.
        expected: core-minutes by command or protocol, from the recipe.
    """
    measured = read_costs(folder)
    by_kind: dict[str, list[float]] = {}
    for step in steps:
        # What an unfinished step has cost so far says nothing of a whole one.
        if step.name in measured and step.name in complete:
            for kind in kinds_of(step):
                by_kind.setdefault(kind, []).append(measured[step.name])

    found: dict[str, float | None] = {}
    for step in steps:
        # The protocol is more specific than the command.
        protocol = step.name.partition("/")[0]
        known = expected.get(protocol, expected.get(step.command))
        alike = next((by_kind[kind] for kind in kinds_of(step) if kind in by_kind), None)
        if step.name in measured and step.name in complete:
            known = measured[step.name]
        elif alike is not None:
            known = statistics.fmean(alike)
        elif step.command == IN_PROCESS:
            known = 0.0
        found[step.name] = known
    return found


def complete_steps(steps: Sequence[Step], folder: Path) -> set[str]:
    """Return the names of the steps that need not run again."""
    complete: set[str] = set()
    for step in steps:
        # A complete step below an incomplete one will be repeated.
        ready = all(parent in complete for parent in step.parents)
        if ready and not step.always and step.is_complete(folder):
            complete.add(step.name)
    return complete


def cost_text(steps: Sequence[Step], folder: Path, expected: Mapping[str, float]) -> str:
    """Return a text table: per step its state and core-minutes, then the total of the rest."""
    complete = complete_steps(steps, folder)
    minutes = estimates(steps, folder, complete, expected)
    width = max(len(step.name) for step in steps)
    lines = [f"{'step':{width}}  state     core-minutes"]
    left = 0.0
    unknown = 0
    for step in steps:
        cost = minutes[step.name]
        done = step.name in complete
        if not done:
            left += cost or 0.0
            unknown += cost is None

        shown = "?" if cost is None else f"{cost:.1f}"
        lines.append(f"{step.name:{width}}  {'complete' if done else 'to run':8}  {shown:>12}")

    more = f", and {unknown} steps of unknown cost" if unknown else ""
    lines.append(f"left: {left:.1f} core-minutes{more}")
    return "\n".join(lines)
