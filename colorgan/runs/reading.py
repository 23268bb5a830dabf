"""Run folders (pretraining, fine-tuning) as plain data: recipe, log, pictures, newest checkpoint's state.

Nothing here trusts a file: what is absent or damaged becomes a note that the page shows. No tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from colorgan.config.settings import show
from colorgan.errors import UsageError
from colorgan.evaluation.record import SavedEvaluation, read_evaluations
from colorgan.files import mapping, number, numbers, read_json, read_text
from colorgan.runs.log import LOG_NAME, read_log
from colorgan.runs.run import FREE_KEYS, RECIPE

Kind = Literal["pretrain", "classify", "segment", "detect"]
KINDS: tuple[Kind, ...] = ("pretrain", "classify", "segment", "detect")
MAX_LOG_BYTES = 256 << 20


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder as it lies on disk."""

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
        """Number and name: how charts and tables call it."""
        return f"{self.number}. {self.name}"

    @cached_property
    def total_images(self) -> int | None:
        """How long the run is to be, as its log says."""
        totals = [e.get("total_images") for e in self.log if isinstance(e.get("total_images"), int)]
        total = totals[-1] if totals else None
        return total if isinstance(total, int) and total > 0 else None

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The log's line of each start: ranks, device, versions."""
        return [
            entry
            for entry in self.log
            if entry["kind"] == "event" and entry.get("text") == "started"
        ]

    @cached_property
    def images_seen(self) -> int:
        """The furthest that the log tells of."""
        return max((entry["images"] for entry in self.log), default=0)

    @property
    def finished(self) -> bool:
        """Whether it saw all its images and scored the result, or has no validation set."""
        return self.total_images is not None and self.images_seen >= self.total_images

    @property
    def seed(self) -> Any:
        """The recipe's seed."""
        return self.recipe.get("seed")

    def curve(self, kind: str, name: str) -> list[tuple[int, float]]:
        """(images, value) of one logged value; lines that lack it, or hold no finite number, are left out."""
        points = []
        for entry in self.log:
            value = (
                number(mapping(entry.get("values")).get(name)) if entry["kind"] == kind else None
            )
            if value is not None:
                points.append((entry["images"], value))
        return points

    def names(self, kind: str) -> list[str]:
        """Every value's name that lines of a kind hold, as first met."""
        found = (
            name
            for entry in self.log
            if entry["kind"] == kind
            for name in mapping(entry.get("values"))
        )
        return list(dict.fromkeys(str(name) for name in found))

    @cached_property
    def last_scores(self) -> dict[str, float]:
        """The last validation; {} without one."""
        lines = [entry for entry in self.log if entry["kind"] == "validate"]
        return numbers(lines[-1].get("values")) if lines else {}

    @property
    def last_scores_images(self) -> int:
        """The images seen at the last validation."""
        return max(
            (entry["images"] for entry in self.log if entry["kind"] == "validate"), default=0
        )

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the recipe by its dotted key."""
        here: Any = self.recipe
        for part in dotted.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return default if here is None else here

    def folders(self, dotted: str) -> list[str]:
        """A setting that is one folder or several."""
        found = self.setting(dotted, [])
        return [str(each) for each in found] if isinstance(found, list) else [str(found)]

    @property
    def model(self) -> dict[str, Any]:
        """What the newest checkpoint says of the network."""
        return mapping(self.state.get("model"))

    @property
    def same_but_seed(self) -> str:
        """Equal for runs that differ only in seed (and in what does not enter the weights)."""
        kept = {
            key: value
            for key, value in flat(self.recipe).items()
            if not _ignored(key, (*FREE_KEYS, "seed"))
        }
        kept["data_digest"] = self.state.get("data_digest", self.setting("data.train"))
        return json.dumps(kept, sort_keys=True, default=str)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    most = max((len(path.parts) for path in paths), default=1)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; lists are values."""
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
    """Dotted key -> each run's value as text, for the keys on which runs differ; "(absent)" where it has none."""
    settings = [{key: show(value) for key, value in flat(run.recipe).items()} for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each if not _ignored(key, ignore))
    rows = {key: [each.get(key, "(absent)") for each in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _ignored(key: str, ignore: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in ignore)


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        UsageError: its recipe cannot be read; one sentence.
    """
    notes: list[str] = []
    recipe = _read_recipe(folder / RECIPE)
    checkpoints = [
        _saved(path) for path in sorted((folder / "checkpoints").glob("images-*")) if path.is_dir()
    ]
    state: dict[str, Any] = {}
    for checkpoint in reversed([each for each in checkpoints if each.complete]):
        state = read_json(folder / "checkpoints" / checkpoint.name / "state.json")
        if state:
            break
    if not state:
        notes.append(
            "No complete checkpoint: data digest, source version and number of ranks are not known."
        )
    evaluations, damaged = read_evaluations(folder)
    pictures = sorted(
        (count, path)
        for path in folder.glob("pictures/images-*.png")
        if (count := _count(path)) is not None
    )
    log = _read_log(folder, notes)
    kind = _kind(recipe)
    return RunFolder(
        folder, kind, recipe, log, pictures, checkpoints, state, evaluations, notes + damaged
    )


def _kind(recipe: Mapping[str, Any]) -> Kind:
    task = recipe.get("task")
    if task is None:
        return "pretrain"
    return next((kind for kind in KINDS[1:] if kind == task), "classify")


def _read_log(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    path = folder / LOG_NAME
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            notes.append(f"{LOG_NAME} is over {MAX_LOG_BYTES >> 20} MiB: left out.")
            return []
        return [entry for entry in read_log(folder) if isinstance(entry["kind"], str)]
    except OSError:
        notes.append(f"There is no {LOG_NAME}: the run has not started, or its log was taken away.")
        return []


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        # Repeated references (&a, *a) unfold without bound; no recipe of ours has one.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or not recipe:
        raise UsageError(f"{path} is not a recipe that a run wrote: leave {path.parent} out")
    return {str(key): value for key, value in recipe.items()}


def _saved(path: Path) -> SavedCheckpoint:
    num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return SavedCheckpoint(path.name, num_bytes, (path / "COMPLETE").is_file())


def _count(path: Path) -> int | None:
    digits = path.stem.removeprefix("images-")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
