"""A step of a study: one command with its recipe, its parents and the file that it completes.

The study's plan (colorgan/study/plan.py) is a list of steps, parents first. The runner executes
them on one machine; `launcher/study.py --list_steps true` prints them as JSON for a scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colorgan.errors import ModelFolderError, UsageError

TRAINING = ("pretrain", "finetune", "probe")
# What a scheduler gives a command: all nodes of a pretraining, one node with GPUs, or cores alone.
RESOURCES = {"pretrain": "pretrain", "finetune": "gpu", "probe": "gpu", "evaluate": "gpu"}
_STUDY = "# study: "  # how the line begins that names the study's folder
IN_PROCESS = "study"  # the command of steps that are functions of the study itself

Recipe = Mapping[str, Any]


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Step:
    """One command of a study.

    Attributes:
        name: unique in a study.
        command: the script in launcher/ without .py; `study` for a function of the study itself.
        done: the file that exists when the step has succeeded.
        parents: names of the steps that must be complete before it.
        recipe: return the command's settings, dotted or nested. Called when the parents are
            complete: a searched learning rate is known only then.
        inputs: return digests of the files that the step reads; it is repeated when they change.
        action: the function of an in-process step.
        may_diverge: a NaN or infinite loss is no failure; a search tries rates that are too high.
        always: repeat it in every run of the study; it is cheap.
    """

    name: str
    command: str
    done: Path
    parents: tuple[str, ...] = ()
    recipe: Callable[[], Recipe] = _nothing
    inputs: Callable[[], Mapping[str, str]] = field(default=_nothing)
    action: Callable[[], None] | None = None
    may_diverge: bool = False
    always: bool = False

    @property
    def file_name(self) -> str:
        """The name of its files in the folder of steps, without ending."""
        # Names are for people; files of a folder must not be nested by them.
        return self.name.replace("/", "-").replace(" ", "-")

    def text(self, folder: Path) -> str:
        """Return the recipe as YAML; as comments the study's folder and the inputs' digests.

        Args:
            folder: of the steps.
        """
        # As comments: the same file is the command's recipe.
        digests = "".join(f"# {name}: {digest}\n" for name, digest in self.inputs().items())
        recipe = yaml.safe_dump(dict(self.recipe()), sort_keys=False)
        return f"{_STUDY}{folder.parent}\n{digests}{recipe}"

    def is_complete(self, folder: Path) -> bool:
        """Return whether its output exists and was made from the same recipe and inputs.

        Args:
            folder: the folder of steps.
        """
        mark = folder / f"{self.file_name}.done"
        # Both: the output may have been removed, or written only in part.
        if not self.done.exists() or not mark.exists():
            return False

        return self.is_marked(mark, folder)

    def has_ended(self, folder: Path) -> bool:
        """Return whether nothing is left to do: it is complete, or has diverged as it may.

        One that is always repeated never ends.

        Args:
            folder: the folder of steps.
        """
        return not self.always and (self.is_complete(folder) or self.has_diverged(folder))

    def has_diverged(self, folder: Path) -> bool:
        """Return whether it may diverge, and did with the same recipe.

        Args:
            folder: the folder of steps.
        """
        mark = folder / f"{self.file_name}.diverged"
        return self.may_diverge and mark.exists() and self.is_marked(mark, folder)

    def is_marked(self, mark: Path, folder: Path) -> bool:
        """Return whether a mark was written for this recipe, also where the study was moved."""
        now, then = self.text(folder), mark.read_text()
        # Marks of earlier versions do not say where the study was.
        if not then.startswith(_STUDY):
            return then == now.partition("\n")[2]
        return _without_place(then) == _without_place(now)


def _without_place(text: str) -> str:
    """Return a mark's text with all paths relative to the study's folder."""
    first, _, rest = text.partition("\n")
    return rest.replace(f"{first.removeprefix(_STUDY)}/", "")


def find_step(steps: Sequence[Step], name: str) -> Step:
    """Return the step of this name.

    Raises:
        UsageError: there is none.
    """
    for step in steps:
        if step.name == name:
            return step
    raise UsageError(f"the study has no step {name!r}; --list_steps true prints their names")


def list_steps(steps: Sequence[Step], folder: Path) -> str:
    """Write the recipes that are known already and return the steps as a JSON list, parents first.

    Each step has `name`; `command`, the script in launcher/; `words`, its arguments; `parents`;
    `resources`: pretrain, gpu or cpu; `complete`; `may_diverge`; `done`, the file that it
    completes; and `recipe`, its YAML file, null while it depends on parents that are not complete.

    Args:
        steps: of the study.
        folder: of the steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete: dict[str, Step] = {}
    entries = []
    for step in steps:
        parents = [complete[name] for name in step.parents if name in complete]
        ready = len(parents) == len(step.parents)
        # A step whose parents will run again will itself.
        if ready and (is_current(step, parents) if step.always else step.has_ended(folder)):
            complete[step.name] = step

        path = folder / f"{step.file_name}.yaml"
        known = step.command != IN_PROCESS and _write_recipe(step, path)
        entries.append(
            {
                "name": step.name,
                "command": step.command,
                "words": ["--config", str(path)] if known else ["--step", step.name],
                "parents": list(step.parents),
                "resources": RESOURCES.get(step.command, "cpu"),
                "complete": step.name in complete,
                "may_diverge": step.may_diverge,
                "recipe": str(path) if known else None,
                "done": str(step.done),
            }
        )
    return json.dumps(entries, indent=1)


def is_current(step: Step, parents: Sequence[Step]) -> bool:
    """Return whether a step that is always repeated is newer than all that it reads."""
    if not step.done.exists():
        return False
    # Nanoseconds: quick steps end within one second of each other.
    made = step.done.stat().st_mtime_ns
    return all(each.done.exists() and each.done.stat().st_mtime_ns <= made for each in parents)


def _write_recipe(step: Step, path: Path) -> bool:
    """Write a step's recipe; return False while it depends on results that do not exist yet."""
    try:
        text = yaml.safe_dump(dict(step.recipe()), sort_keys=False)
    # A recipe that needs a searched rate, or the network of a generator to come.
    except (UsageError, ModelFolderError):
        return False

    path.write_text(text)
    return True
