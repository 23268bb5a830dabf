"""Print a study's steps for slurm/study.sh, one per line.

    study.py ... --list_steps true | steps.py


Prints, separated by tabs: file name, command, kind of job (slurm/common.sh), `done` or `open`, run
folder, parents' file names separated by blanks, recipe, output, name. An empty field is `-`. The
standard library alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = {"pretrain": "pretrain", "finetune": "gpu", "evaluate": "gpu", "probe": "gpu"}
WITH_RUN_FOLDER = ("pretrain", "finetune")


def main() -> None:
    """Read the JSON of --list_steps from standard input and print the lines."""
    steps: list[dict[str, Any]] = json.load(sys.stdin)
    complete: dict[str, bool] = {}
    for step in steps:
        # In the study's order, parents first: each is known before its children ask.
        complete[step["name"]] = is_complete(step, steps, complete)
        print(
            "\t".join(
                fields(
                    step,
                    complete[step["name"]],
                )
            )
        )


def is_complete(
    step: dict[str, Any], steps: list[dict[str, Any]], complete: dict[str, bool]
) -> bool:
    """Return whether a step need not run; cheap ones have no mark, but newer output than input."""
    if step["complete"]:
        return True
    # Ordinary commands have a mark; without it they run.
    if step["recipe"] is not None and step["command"] != "report":
        return False

    output = Path(step["done"])
    parents = [each for each in steps if each["name"] in step["parents"]]
    if not output.exists() or not all(complete[each["name"]] for each in parents):
        return False
    made = output.stat().st_mtime
    return all(made >= modified(Path(each["done"])) for each in parents)


def modified(path: Path) -> float:
    """Return when a file was written; 0 if it does not exist."""
    return path.stat().st_mtime if path.exists() else 0.0


def fields(step: dict[str, Any], complete: bool) -> list[str]:
    """Return the fields of a step's line."""
    command = step["command"]
    run = "-"
    if command in WITH_RUN_FOLDER:
        folder = Path(step["done"]).parent
        # Fine-tuning is complete by its scores, one folder below the run.
        run = str(folder.parent if folder.name == "evaluation" else folder)
    return [
        file_name(step["name"]),
        command,
        KINDS.get(command, "cpu"),
        "done" if complete else "open",
        run,
        " ".join(map(file_name, step["parents"])) or "-",
        step["recipe"] or "-",
        step["done"],
        step["name"],
    ]


def file_name(name: str) -> str:
    """Return a step's name as its files have it (colorgan/study/steps.py)."""
    return name.replace("/", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
