"""What the report reads: run folders (pretraining, fine-tuning) and evaluation folders, as plain data.

    RUN... -> read_folders -> colorgan/report.py (the page)

Nothing here trusts a file: what is absent or damaged becomes a note that the page shows. No tensor is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from colorgan.errors import UsageError
from colorgan.run import FREE_KEYS, RECIPE
from colorgan.runlog import LOG_NAME, read_log
from colorgan.schema_keys import show

Kind = Literal["pretrain", "classify", "segment"]
SCORES = "scores.json"
MAX_TEXT_BYTES = 8 << 20


@dataclass(frozen=True)
class Evaluation:
    """What launcher/evaluate.py wrote: scores, and what they were computed with."""

    path: Path
    model: str
    data: tuple[str, ...]
    kind: str
    inference: str
    images_seen: int | None
    scores: dict[str, float]
    picture: Path | None


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
    evaluations: list[Evaluation]
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
            value = _number(_mapping(entry.get("values")).get(name)) if entry["kind"] == kind else None
            if value is not None:
                points.append((entry["images"], value))
        return points

    def names(self, kind: str) -> list[str]:
        """Every value's name that lines of a kind hold, as first met."""
        found = (name for entry in self.log if entry["kind"] == kind for name in _mapping(entry.get("values")))
        return list(dict.fromkeys(str(name) for name in found))

    @cached_property
    def last_scores(self) -> dict[str, float]:
        """The last validation; {} without one."""
        lines = [entry for entry in self.log if entry["kind"] == "validate"]
        return _numbers(lines[-1].get("values")) if lines else {}

    @property
    def last_scores_images(self) -> int:
        """The images seen at the last validation."""
        return max((entry["images"] for entry in self.log if entry["kind"] == "validate"), default=0)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the recipe by its dotted key."""
        here: Any = self.recipe
        for part in dotted.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return default if here is None else here

    @property
    def model(self) -> dict[str, Any]:
        """What the newest checkpoint says of the network."""
        return _mapping(self.state.get("model"))

    @property
    def same_but_seed(self) -> str:
        """Equal for runs that differ only in seed (and in what does not enter the weights)."""
        kept = {key: value for key, value in flat(self.recipe).items() if not _ignored(key, (*FREE_KEYS, "seed"))}
        kept["data_digest"] = self.state.get("data_digest", self.setting("data.train"))
        return json.dumps(kept, sort_keys=True, default=str)


@dataclass(frozen=True)
class Story:
    """Everything that a report is made of."""

    runs: list[RunFolder]
    evaluations: list[Evaluation]  # of folders that were given by themselves
    notes: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[RunFolder]:
        """The runs of some kinds, in order."""
        return [run for run in self.runs if run.kind in kinds]


def read_folders(folders: Sequence[Path]) -> Story:
    """Read run and evaluation folders; one given twice counts once.

    Raises:
        UsageError: a folder is neither, or its recipe cannot be read; one sentence.
    """
    runs, evaluations = [], []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        if (folder / RECIPE).is_file():
            runs.append(_read_run(folder))
        elif (folder / SCORES).is_file():
            evaluations.append(read_evaluation(folder))
        else:
            what = "has neither recipe.yaml nor scores.json" if folder.is_dir() else "is no folder"
            raise UsageError(
                f"{folder} {what}: give run folders of launcher/pretrain.py or finetune.py, or --out folders of "
                "launcher/evaluate.py"
            )
    runs.sort(key=lambda run: ("pretrain", "classify", "segment").index(run.kind))
    for number, (run, name) in enumerate(zip(runs, short_names([run.path for run in runs]), strict=True), 1):
        run.number, run.name = number, name
    return Story(runs, evaluations)


def read_evaluation(folder: Path) -> Evaluation:
    """Read a folder of launcher/evaluate.py.

    Raises:
        UsageError: scores.json is damaged.
    """
    path = folder / SCORES
    try:
        text = _mapping(json.loads(_read_text(path)))
        scores = _numbers(text.get("scores"))
    except (ValueError, RecursionError):
        text, scores = {}, {}
    if not scores:
        raise UsageError(
            f"{path} holds no scores: write it again with `accelerate launch launcher/evaluate.py --out DIR`"
        )
    data = text.get("data")
    return Evaluation(
        path=folder,
        model=str(text.get("model", "")),
        data=tuple(map(str, data)) if isinstance(data, list) else (),
        kind=str(text.get("kind", "")),
        inference=str(text.get("inference", "")),
        images_seen=text.get("images_seen") if isinstance(text.get("images_seen"), int) else None,
        scores=scores,
        picture=folder / "coloured.png" if (folder / "coloured.png").is_file() else None,
    )


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


def differences(runs: Iterable[RunFolder], ignore: Sequence[str] = ("run", "dry_run")) -> dict[str, list[str]]:
    """Dotted key -> each run's value as text, for the keys on which runs differ; "(absent)" where it has none."""
    settings = [{key: show(value) for key, value in flat(run.recipe).items()} for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each if not _ignored(key, ignore))
    rows = {key: [each.get(key, "(absent)") for each in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _ignored(key: str, ignore: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in ignore)


def _read_run(folder: Path) -> RunFolder:
    notes: list[str] = []
    recipe = _read_recipe(folder / RECIPE)
    task = recipe.get("task")
    kind: Kind = "segment" if task == "segment" else "classify" if task is not None else "pretrain"
    try:
        log = [entry for entry in read_log(folder) if isinstance(entry["kind"], str)]
    except OSError:
        log = []
        notes.append(f"There is no {LOG_NAME}: the run has not started, or its log was taken away.")
    checkpoints = [_saved(path) for path in sorted((folder / "checkpoints").glob("images-*")) if path.is_dir()]
    state: dict[str, Any] = {}
    for checkpoint in reversed([each for each in checkpoints if each.complete]):
        state = _read_json(folder / "checkpoints" / checkpoint.name / "state.json")
        if state:
            break
    if not state:
        notes.append("No complete checkpoint: data digest, source version and number of ranks are not known.")
    evaluations = []
    for path in sorted(folder.glob(f"*/{SCORES}")):
        try:
            evaluations.append(read_evaluation(path.parent))
        except UsageError as error:
            notes.append(f"{error}.")
    pictures = sorted(
        (count, path) for path in folder.glob("pictures/images-*.png") if (count := _count(path)) is not None
    )
    return RunFolder(folder, kind, recipe, log, pictures, checkpoints, state, evaluations, notes)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(_read_text(path))
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


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError("too large")
    return data.decode("utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(_read_text(path)))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _numbers(values: Any) -> dict[str, float]:
    pairs = ((str(name), _number(value)) for name, value in _mapping(values).items())
    return {name: number for name, number in pairs if number is not None}
