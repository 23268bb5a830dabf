"""Read run folders as plain data: recipe, log, pictures, the newest checkpoint's state.

Nothing here trusts a file: what is missing or damaged becomes a note that the page shows. No tensor
is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from colorgan.checkpoints.checkpoint import CHECKPOINTS
from colorgan.config.recipe import TaskName
from colorgan.config.settings import show
from colorgan.evaluation.record import SavedEvaluation, read_evaluations
from colorgan.files import mapping, number, numbers, read_json
from colorgan.runs.log import LOG_NAME, read_log
from colorgan.runs.recipe import FREE_KEYS, RECIPE, read_recipe

__all__ = [
    "CHANGED",
    "FREE_KEYS",
    "KINDS",
    "LOG_NAME",
    "RECIPE",
    "Kind",
    "RunFolder",
    "SavedCheckpoint",
    "differences",
    "flat",
    "read_run",
    "short_names",
]

Kind = Literal["pretrain"] | TaskName
KINDS: tuple[Kind, ...] = ("pretrain", *get_args(TaskName))
MAX_LOG_BYTES = 256 << 20
# Ends the commit of a source tree whose files had been edited since: it does not say what ran.
CHANGED = "+changes"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder on disk."""

    name: str
    num_bytes: int
    complete: bool


@dataclass
class RunFolder:
    """One training run."""

    path: Path
    kind: Kind
    recipe: dict[str, Any]
    log: list[dict[str, Any]]
    pictures: list[tuple[int, Path]]  # images seen, PNG; in that order
    checkpoints: list[SavedCheckpoint]
    state: dict[str, Any]  # of the newest checkpoint; {} without one
    evaluations: list[SavedEvaluation]
    notes: list[str]
    name: str = ""  # the shortest that tells it from the others
    number: int = 0  # its place on the page, from 1

    @property
    def title(self) -> str:
        """Number and name, as charts and tables show them."""
        return f"{self.number}. {self.name}"

    @cached_property
    def total_images(self) -> int | None:
        """The planned length in images; None if the log does not have it."""
        totals = [e["total_images"] for e in self.log if isinstance(e.get("total_images"), int)]
        # The last: a run may have been extended.
        return totals[-1] if totals and totals[-1] > 0 else None

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The log's line of each start: ranks, device, versions."""
        events = [entry for entry in self.log if entry["kind"] == "event"]
        return [entry for entry in events if entry.get("text") == "started"]

    @cached_property
    def images_seen(self) -> int:
        """The most images seen of any line of the log."""
        return max((entry["images"] for entry in self.log), default=0)

    @property
    def finished(self) -> bool:
        """Whether it has seen all its images."""
        return self.total_images is not None and self.images_seen >= self.total_images

    @property
    def seed(self) -> Any:
        """The recipe's seed."""
        return self.recipe.get("seed")

    def curve(self, kind: str, name: str) -> list[tuple[int, float]]:
        """Return (images, value) of one logged value, without lines that lack a finite one."""
        points = []
        for entry in self.log:
            if entry["kind"] != kind:
                continue
            value = number(mapping(entry.get("values")).get(name))
            if value is not None:
                points.append((entry["images"], value))
        return points

    def names(self, kind: str) -> list[str]:
        """Return the name of every value in lines of a kind, in order of first appearance."""
        names: dict[str, None] = {}
        for entry in self.log:
            if entry["kind"] == kind:
                names |= dict.fromkeys(str(name) for name in mapping(entry.get("values")))
        return list(names)

    @cached_property
    def last_scores(self) -> dict[str, float]:
        """The last validation's scores; {} without one."""
        lines = [entry for entry in self.log if entry["kind"] == "validate"]
        return numbers(lines[-1].get("values")) if lines else {}

    @property
    def last_scores_images(self) -> int:
        """The images seen at the last validation."""
        lines = [entry for entry in self.log if entry["kind"] == "validate"]
        return max((entry["images"] for entry in lines), default=0)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return a value of the recipe by its dotted key."""
        here: Any = self.recipe
        for part in dotted.split("."):
            # Recipes may be of an older version, or damaged.
            here = here.get(part) if isinstance(here, dict) else None
        return default if here is None else here

    def folders(self, dotted: str) -> list[str]:
        """Return a setting that is one folder or several."""
        value = self.setting(dotted, [])
        return [str(each) for each in value] if isinstance(value, list) else [str(value)]

    @property
    def model(self) -> dict[str, Any]:
        """The newest checkpoint's description of the network."""
        return mapping(self.state.get("model"))

    @property
    def same_but_seed(self) -> str:
        """A text equal for runs that differ only in seed and in keys that leave weights alone."""
        kept = {}
        for key, value in flat(self.recipe).items():
            if not _ignored(key, (*FREE_KEYS, "seed")):
                kept[key] = value
        # By content where it is known: the same set may lie in two places.
        kept["data_digest"] = self.state.get("data_digest", self.setting("data.train"))
        return json.dumps(kept, sort_keys=True, default=str)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    most = max((len(path.parts) for path in paths), default=1)
    # From the end: runs are named by their own folder, and their parents if need be.
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted keys; lists are values."""
    leaves: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differences(
    runs: Iterable[RunFolder], ignore: Sequence[str] = ("run", "dry_run")
) -> dict[str, list[str]]:
    """Return the dotted keys on which runs differ, with each run's value as text.

    A key that a run lacks is "(absent)".
    """
    settings = []
    for run in runs:
        settings.append({key: show(value) for key, value in flat(run.recipe).items()})

    rows = {}
    for key in dict.fromkeys(key for each in settings for key in each):
        values = [each.get(key, "(absent)") for each in settings]
        if not _ignored(key, ignore) and len(set(values)) > 1:
            rows[key] = values
    return rows


def _ignored(key: str, ignore: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in ignore)


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        UsageError: Its recipe cannot be read.
    """
    recipe = read_recipe(folder / RECIPE)
    notes: list[str] = []
    checkpoints = _saved_checkpoints(folder / CHECKPOINTS)
    state = _newest_state(folder / CHECKPOINTS, checkpoints)
    if not state:
        notes.append(
            "No complete checkpoint: data digest, source version and number of ranks are not known."
        )

    log = _read_log(folder, notes)
    evaluations, damaged = read_evaluations(folder)
    return RunFolder(
        path=folder,
        kind=_kind(recipe),
        recipe=recipe,
        log=log,
        pictures=_pictures(folder),
        checkpoints=checkpoints,
        state=state,
        evaluations=evaluations,
        notes=notes + damaged,
    )


def _kind(recipe: Mapping[str, Any]) -> Kind:
    task = recipe.get("task")
    if task is None:
        return "pretrain"
    return next((name for name in get_args(TaskName) if name == task), "classify")


def _read_log(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        # The page is read whole into memory.
        if (folder / LOG_NAME).stat().st_size > MAX_LOG_BYTES:
            notes.append(f"{LOG_NAME} is over {MAX_LOG_BYTES >> 20} MiB: left out.")
            return []
        return read_log(folder)
    except OSError:
        notes.append(f"There is no {LOG_NAME}: the run has not started, or its log was removed.")
        return []


def _saved_checkpoints(folder: Path) -> list[SavedCheckpoint]:
    saved = []
    for path in sorted(folder.glob("images-*")):
        if path.is_dir():
            sizes = [file.stat().st_size for file in path.iterdir() if file.is_file()]
            # Presence only: checking digests would read gigabytes for a page.
            complete = (path / "COMPLETE").is_file()
            saved.append(SavedCheckpoint(path.name, sum(sizes), complete))
    return saved


def _newest_state(folder: Path, checkpoints: Sequence[SavedCheckpoint]) -> dict[str, Any]:
    # The newest may be damaged; an older one tells the same but for its images.
    for checkpoint in reversed(checkpoints):
        state = read_json(folder / checkpoint.name / "state.json") if checkpoint.complete else {}
        if state:
            return state
    return {}


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    pictures = []
    for path in folder.glob("pictures/images-*.png"):
        digits = path.stem.removeprefix("images-")
        # isdigit() alone also accepts superscripts, at which int() fails.
        if digits.isascii() and digits.isdigit() and len(digits) < 20:
            pictures.append((int(digits), path))
    return sorted(pictures)
