"""scores.json: written and read here, nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, numbers, read_text, replacing, short, whole

EVALUATION = "evaluation"


SCORES, PER_IMAGE, PICTURES = "scores.json", "per_image.safetensors", "pictures.png"


@dataclass(frozen=True)
class Evaluation:
    """What one walk over a set gave; the same on all ranks, but for the pictures, which only rank 0 has.

    Attributes:
        scores: shares in [0, 1], with `images` and `classes`, the numbers that were scored.
        per_class: average precision or IoU of each class; NaN where there was nothing to score.
        confusion_CC: int64, row = true class, column = predicted one.
        per_image: tensors with one row an image, in the order of `sample_ids_N`.
        save_pictures: writes the picture of this evaluation to a path; None where there is none.
        per_class_dice: Dice of each class, of the same pixels as `per_class`; segmentation only.
    """

    scores: dict[str, float]
    per_class: dict[str, float] = field(default_factory=dict)
    confusion_CC: Tensor | None = None
    per_image: dict[str, Tensor] = field(default_factory=dict)
    save_pictures: Callable[[Path], None] | None = None
    per_class_dice: dict[str, float] = field(default_factory=dict)


def write_evaluation(folder: Path, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the evaluation folder, scores.json last: where it stands, the rest is whole. Rank 0 only.

    Args:
        about: what the scores were computed with: model, data, kind, inference, images_seen, classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SCORES, PER_IMAGE, PICTURES):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    if evaluation.per_image:
        tensors = {name: tensor.contiguous() for name, tensor in evaluation.per_image.items()}
        with replacing(folder / PER_IMAGE) as partial:
            save_file(tensors, partial)
    if evaluation.save_pictures is not None:
        evaluation.save_pictures(folder / PICTURES)
    confusion = None if evaluation.confusion_CC is None else evaluation.confusion_CC.tolist()
    text = {
        **about,
        "scores": _plain(evaluation.scores),
        "per_class": _plain(evaluation.per_class),
        **(
            {"per_class_dice": _plain(evaluation.per_class_dice)}
            if evaluation.per_class_dice
            else {}
        ),
        "confusion": confusion,
    }
    with replacing(folder / SCORES) as partial:
        partial.write_text(json.dumps(text, indent=1, allow_nan=False) + "\n")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what could not be scored is null."""
    return {name: value if value == value else None for name, value in values.items()}


SHOWN = {
    "pictures": ("pictures.png", "coloured.png"),
    "best": ("best.png",),
    "worst": ("worst.png",),
}
MAX_CLASSES = 400
MAX_FOLDERS = 20  # of one run


@dataclass(frozen=True)
class SavedEvaluation:
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


def read_evaluation(folder: Path) -> SavedEvaluation:
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
    return SavedEvaluation(
        path=folder,
        model=str(text.get("model", "")),
        data=tuple(map(str, entries(text.get("data"), 100))),
        kind=str(text.get("kind", "")),
        inference=short(text.get("inference", ""), 20),
        images_seen=whole(text.get("images_seen")),
        scores=scores,
        per_class=per_class,
        confusion=confusion,
        confusion_names=_names(
            len(confusion), list(per_class), entries(text.get("classes"), MAX_CLASSES)
        ),
        pictures={
            what: found
            for what, names in SHOWN.items()
            if (found := next((folder / name for name in names if (folder / name).is_file()), None))
            is not None
        },
    )


def read_evaluations(run: Path) -> tuple[list[SavedEvaluation], list[str]]:
    """Return the evaluation folders inside a run folder, and a note for each that is damaged."""
    found, notes = [], []
    for path in sorted(run.glob(f"*/{SCORES}"))[:MAX_FOLDERS]:
        try:
            found.append(read_evaluation(path.parent))
        except UsageError as error:
            notes.append(f"{error}.")
    return found, notes


def _per_class(value: Any) -> dict[str, float | None]:
    found = {
        short(name, 40): number(score) for name, score in list(mapping(value).items())[:MAX_CLASSES]
    }
    return {
        name: None if score is None else min(max(score, 0.0), 1.0) for name, score in found.items()
    }


def _confusion(value: Any) -> list[list[float]]:
    """A square of counts, or []."""
    rows = entries(value, MAX_CLASSES + 1)
    if not 0 < len(rows) <= MAX_CLASSES:
        return []
    matrix = [[number(count) for count in entries(row, len(rows) + 1)] for row in rows]
    if any(
        len(row) != len(rows) or any(count is None or count < 0 for count in row) for row in matrix
    ):
        return []
    return [[count or 0.0 for count in row] for row in matrix]


def _names(count: int, per_class: list[str], classes: list[Any]) -> tuple[str, ...]:
    """Those of a matrix's rows: masks have a background before the set's classes."""
    told = [short(name, 40) for name in classes]
    for names in (per_class, told, ["background", *told]):
        if len(names) == count:
            return tuple(names)
    return tuple(map(str, range(count)))
