"""What the steps of a study cost in core-minutes: measured afterwards, estimated beforehand.

    <step>.cost.json    seconds of wall time, core_seconds of all processes that the step started

An estimate is the step's own measured cost, else the mean of complete steps of the same kind, else
the value in the recipe (`expected_core_minutes`), which holds for the machine on which the recipe
was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
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


def kind_of(step: Step) -> str:
    """Return what steps of like cost share: command and protocol."""
    protocol = step.name.rpartition("/")[0]
    return f"{step.command} {protocol}".strip()


def estimates(
    steps: Sequence[Step], folder: Path, expected: Mapping[str, float]
) -> dict[str, float | None]:
    """Return the estimated core-minutes of each step; None: unknown.

    Args:
        steps: of the study.
        folder: of the steps, with the costs of those that have run.
        expected: core-minutes by command or protocol, from the recipe.
    """
    measured = read_costs(folder)
    by_kind: dict[str, list[float]] = {}
    for step in steps:
        if step.name in measured:
            # Steps of a kind differ in seed alone, so their mean is a fair guess.
            by_kind.setdefault(kind_of(step), []).append(measured[step.name])

    found: dict[str, float | None] = {}
    for step in steps:
        # The protocol is more specific than the command.
        protocol = step.name.partition("/")[0]
        known = expected.get(protocol, expected.get(step.command))
        if step.name in measured:
            known = measured[step.name]
        elif kind_of(step) in by_kind:
            known = statistics.fmean(by_kind[kind_of(step)])
        elif step.command == IN_PROCESS:
            known = 0.0
        found[step.name] = known
    return found


def cost_text(steps: Sequence[Step], folder: Path, expected: Mapping[str, float]) -> str:
    """Return a text table: per step its state and core-minutes, then the total of the rest."""
    minutes = estimates(steps, folder, expected)
    width = max(len(step.name) for step in steps)
    lines = [f"{'step':{width}}  state     core-minutes"]
    left = 0.0
    unknown = 0
    # A complete step below an incomplete one will be repeated.
    complete: set[str] = set()
    for step in steps:
        ready = all(parent in complete for parent in step.parents)
        done = ready and not step.always and step.is_complete(folder)
        if done:
            complete.add(step.name)
        else:
            left += minutes[step.name] or 0.0
            unknown += minutes[step.name] is None

        cost = minutes[step.name]
        shown = "?" if cost is None else f"{cost:.1f}"
        lines.append(f"{step.name:{width}}  {'complete' if done else 'to run':8}  {shown:>12}")

    more = f", and {unknown} steps of unknown cost" if unknown else ""
    lines.append(f"left: {left:.1f} core-minutes{more}")
    return "\n".join(lines)
