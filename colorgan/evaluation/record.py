"""An evaluation folder: what a model scored on a set, with the evidence.

Written and read here alone.

    scores.json               scores, per class, confusion, and what they were computed with
    per_image.safetensors     what a bootstrap over images needs (colorgan/study/comparison.py)
    pictures.png              images with their true and predicted masks or boxes

C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from colorgan.errors import UsageError
from colorgan.files import (
    check_output,
    entries,
    mapping,
    number,
    numbers,
    read_json,
    read_text,
    replacing,
    short,
    whole,
    write_json,
)

# Not at run time: studies and reports read records without torch.
if TYPE_CHECKING:
    from torch import Tensor

EVALUATION = "evaluation"
# Ends the names of a generator's scores over the images that have color.
WITHOUT_NEAR_GREY = "_without_near_grey"
SCORES, PER_IMAGE, PICTURES = "scores.json", "per_image.safetensors", "pictures.png"

# Pictures of an evaluation folder by what they show; the first file that exists is taken.
SHOWN = {
    "pictures": (PICTURES, "coloured.png"),
    "best": ("best.png",),
    "worst": ("worst.png",),
}
MAX_CLASSES = 400
MAX_NAME = 40
MAX_FOLDERS = 20  # of one run


class SavedEvaluation(BaseModel):
    """The record in scores.json: scores of a model on a set, and what they were computed with.

    A score that is undefined (no image, no object of a class) is NaN in memory and null in the
    file; reading leaves it out of `scores` and gives None in `per_class`.

    Attributes:
        path: The folder it was read from.
        model: The model folder.
        weights_sha256: Of its weights; empty in older records.
        data: The packed folders.
        kind: The model's kind: generator, classifier, segmenter or detector.
        inference: running or paper.
        images_seen: In training.
        classes: Names of the set's classes.
        scores: Shares in [0, 1] or in the score's own unit; `images` and `classes` count what was
            scored.
        per_class: Average precision or IoU of each class.
        per_class_dice: Dice of each class, of the same pixels as `per_class`; segmentation only.
        confusion: C x C counts, row = true class, column = predicted one; empty where there is
            none.
    """

    model_config = ConfigDict(frozen=True)

    path: Path = Field(Path(), exclude=True)
    model: str = ""
    weights_sha256: str = ""
    data: tuple[str, ...] = ()
    kind: str = ""
    inference: str = ""
    images_seen: int | None = None
    classes: tuple[str, ...] = ()
    scores: dict[str, float]
    per_class: dict[str, float | None] = {}
    per_class_dice: dict[str, float | None] = {}
    confusion: list[list[int]] = []

    @property
    def confusion_names(self) -> tuple[str, ...]:
        """Names of the confusion's rows: masks have a background before the set's classes."""
        count = len(self.confusion)
        # By length, as older records do not say whether the background has a row.
        for names in (tuple(self.per_class), self.classes, ("background", *self.classes)):
            if len(names) == count:
                return names

        return tuple(map(str, range(count)))

    @property
    def pictures(self) -> dict[str, Path]:
        """Pictures in the folder, by what they show: "pictures", "best", "worst"."""
        pictures = {}
        for what, names in SHOWN.items():
            paths = [self.path / name for name in names if (self.path / name).is_file()]
            if paths:
                pictures[what] = paths[0]
        return pictures

    def to_json(self) -> dict[str, Any]:
        """Return the fields of scores.json."""
        fields = self.model_dump(mode="python")
        for name in ("scores", "per_class", "per_class_dice"):
            fields[name] = _without_nan(fields[name])
        # Left out for other tasks, so that their files stay as earlier versions wrote them.
        if not self.per_class_dice:
            del fields["per_class_dice"]
        if not self.weights_sha256:  # a probe's
            del fields["weights_sha256"]
        # Null for none, as an empty list would be a matrix of no classes.
        fields["confusion"] = self.confusion or None
        return fields


@dataclass(frozen=True)
class Evaluation:
    """The result of scoring a set: the record and its evidence.

    The same on all ranks but for the pictures.

    Attributes:
        record: What scores.json will hold.
        per_image: Tensors with one row per image, in the order of `sample_ids_N`.
        save_pictures: Writes a picture to a path; None where no picture was asked for, and on ranks
            other than 0.
    """

    record: SavedEvaluation
    per_image: dict[str, Tensor] = field(default_factory=dict)
    save_pictures: Callable[[Path], None] | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The record's scores."""
        return self.record.scores


def write_evaluation(folder: Path, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the evaluation folder, scores.json last: once it exists, the rest is complete.

    Rank 0 only.

    Args:
        folder: Made if absent; new or empty, as it takes an older one's place whole.
        evaluation: The scores and their evidence.
        about: What the scores were computed with: model, weights_sha256, data, kind, inference,
            images_seen, classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if evaluation.per_image:
        # Torch is loaded already, as it made the tensors.
        from colorgan.models.weights_file import save_tensors

        # safetensors refuses views of one storage.
        tensors = {name: tensor.contiguous() for name, tensor in evaluation.per_image.items()}
        with replacing(folder / PER_IMAGE) as partial:
            save_tensors(tensors, partial)

    if evaluation.save_pictures is not None:
        evaluation.save_pictures(folder / PICTURES)

    record = SavedEvaluation.model_validate({**evaluation.record.model_dump(), **about})
    write_json(folder / SCORES, record.to_json())


def check_replaced(out: Path, kind: str) -> None:
    """Refuse an output folder that holds anything but an older evaluation of such a model.

    Args:
        out: For scores and pictures.
        kind: Of the model that is to be scored.

    Raises:
        UsageError: Names what it holds.
    """
    check_output(out, SCORES)
    older = read_json(out / SCORES).get("kind") or kind
    if older != kind:
        raise UsageError(
            f"{out} holds the evaluation of a {short(older, MAX_NAME)} and is not replaced by that "
            f"of a {kind}: choose another --out"
        )


def read_evaluation(folder: Path) -> SavedEvaluation:
    """Read an evaluation folder's record; sizes and types of what it holds are bounded.

    Raises:
        UsageError: scores.json is absent or damaged.
    """
    path = folder / SCORES
    try:
        fields = mapping(json.loads(read_text(path)))
        scores = numbers(fields.get("scores"))
    except (OSError, ValueError, RecursionError):
        fields, scores = {}, {}
    if not scores:
        raise UsageError(
            f"{path} holds no scores: write it with `accelerate launch launcher/evaluate.py --out "
            "DIR`"
        )

    classes = entries(fields.get("classes"), MAX_CLASSES)
    return SavedEvaluation(
        path=folder,
        model=str(fields.get("model", "")),
        weights_sha256=short(fields.get("weights_sha256", ""), 64),
        data=tuple(map(str, entries(fields.get("data"), 100))),
        kind=str(fields.get("kind", "")),
        inference=short(fields.get("inference", ""), 20),
        images_seen=whole(fields.get("images_seen")),
        classes=tuple(short(name, MAX_NAME) for name in classes),
        scores=scores,
        per_class=_shares(fields.get("per_class")),
        per_class_dice=_shares(fields.get("per_class_dice")),
        confusion=_confusion(fields.get("confusion")),
    )


def read_evaluations(run: Path) -> tuple[list[SavedEvaluation], list[str]]:
    """Return the evaluations inside a run folder, and a note for each that is damaged."""
    evaluations, notes = [], []
    # Bounded: a run folder from elsewhere may hold any number of them.
    for path in sorted(run.glob(f"*/{SCORES}"))[:MAX_FOLDERS]:
        try:
            evaluations.append(read_evaluation(path.parent))
        except UsageError as error:
            notes.append(f"{error}.")
    return evaluations, notes


def _without_nan(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if value == value else None for name, value in values.items()}


def _shares(value: Any) -> dict[str, float | None]:
    """Scores by class, clipped to [0, 1]."""
    shares: dict[str, float | None] = {}
    for name, score in list(mapping(value).items())[:MAX_CLASSES]:
        share = number(score)
        shares[short(name, MAX_NAME)] = None if share is None else min(max(share, 0.0), 1.0)
    return shares


def _confusion(value: Any) -> list[list[int]]:
    """Return a square of counts, or []."""
    rows = entries(value, MAX_CLASSES + 1)
    if not 0 < len(rows) <= MAX_CLASSES:
        return []

    matrix = []
    for row in rows:
        counts = [number(count) for count in entries(row, len(rows) + 1)]
        known = [int(count) for count in counts if count is not None and count >= 0]
        # One bad row spoils the matrix: its columns would stand under other names.
        if len(known) != len(rows) or len(counts) != len(rows):
            return []
        matrix.append(known)
    return matrix
