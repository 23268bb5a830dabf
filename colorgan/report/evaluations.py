"""Evaluation folders, as launcher/evaluate.py and the end of a fine-tuning run write them, as plain data.

scores.json: scores, per_class, confusion, and what they were computed with
pictures.png (overlays, or coloured photos), best.png and worst.png: to look at
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, numbers, read_text, short, whole

SCORES = "scores.json"
PICTURES = {"pictures": ("pictures.png", "coloured.png"), "best": ("best.png",), "worst": ("worst.png",)}
MAX_CLASSES = 400
MAX_FOLDERS = 20  # of one run


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a set, and what they were computed with.

    Attributes:
        per_class: average precision or IoU, a share in [0, 1]; None where there was nothing to score.
        confusion: counts, row = true class, column = predicted one; in the order of `confusion_names`.
        pictures: what there is to look at: "pictures", "best", "worst".
    """

    path: Path
    model: str
    data: tuple[str, ...]
    kind: str
    inference: str
    images_seen: int | None
    scores: dict[str, float]
    per_class: dict[str, float | None] = field(default_factory=dict)
    confusion: list[list[float]] = field(default_factory=list)
    confusion_names: tuple[str, ...] = ()
    pictures: dict[str, Path] = field(default_factory=dict)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation folder.

    Raises:
        UsageError: scores.json is damaged.
    """
    path = folder / SCORES
    try:
        text = mapping(json.loads(read_text(path)))
        scores = numbers(text.get("scores"))
    except (OSError, ValueError, RecursionError):
        text, scores = {}, {}
    if not scores:
        raise UsageError(
            f"{path} holds no scores: write it again with `accelerate launch launcher/evaluate.py --out DIR`"
        )
    per_class = _per_class(text.get("per_class"))
    confusion = _confusion(text.get("confusion"))
    return Evaluation(
        path=folder,
        model=str(text.get("model", "")),
        data=tuple(map(str, entries(text.get("data"), 100))),
        kind=str(text.get("kind", "")),
        inference=short(text.get("inference", ""), 20),
        images_seen=whole(text.get("images_seen")),
        scores=scores,
        per_class=per_class,
        confusion=confusion,
        confusion_names=_names(len(confusion), list(per_class), entries(text.get("classes"), MAX_CLASSES)),
        pictures={
            what: found
            for what, names in PICTURES.items()
            if (found := next((folder / name for name in names if (folder / name).is_file()), None)) is not None
        },
    )


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """Return the evaluation folders inside a run folder, and a note for each that is damaged."""
    found, notes = [], []
    for path in sorted(run.glob(f"*/{SCORES}"))[:MAX_FOLDERS]:
        try:
            found.append(read_evaluation(path.parent))
        except UsageError as error:
            notes.append(f"{error}.")
    return found, notes


def _per_class(value: Any) -> dict[str, float | None]:
    found = {short(name, 40): number(score) for name, score in list(mapping(value).items())[:MAX_CLASSES]}
    return {name: None if score is None else min(max(score, 0.0), 1.0) for name, score in found.items()}


def _confusion(value: Any) -> list[list[float]]:
    """A square of counts, or []."""
    rows = entries(value, MAX_CLASSES + 1)
    if not 0 < len(rows) <= MAX_CLASSES:
        return []
    matrix = [[number(count) for count in entries(row, len(rows) + 1)] for row in rows]
    if any(len(row) != len(rows) or any(count is None or count < 0 for count in row) for row in matrix):
        return []
    return [[count or 0.0 for count in row] for row in matrix]


def _names(count: int, per_class: list[str], classes: list[Any]) -> tuple[str, ...]:
    """Those of a matrix's rows: masks have a background before the set's classes."""
    told = [short(name, 40) for name in classes]
    for names in (per_class, told, ["background", *told]):
        if len(names) == count:
            return tuple(names)
    return tuple(map(str, range(count)))
