"""The downstream tasks, each described once: labels, network, loss, scores and words.

CONTRIBUTING.md lists what a new task touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from colorgan.config.recipe import TaskName
from colorgan.data import Batch, Targets
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.classifier_scores import classifier_text, score_classifier
from colorgan.evaluation.detection_loss import batch_detection_loss
from colorgan.evaluation.detector_scores import detector_text, score_detector
from colorgan.evaluation.losses import LossSettings, classification_loss, segmentation_loss
from colorgan.evaluation.predictions import Prediction, predictions
from colorgan.evaluation.record import Evaluation
from colorgan.evaluation.segmenter_scores import score_segmenter, segmenter_text
from colorgan.models.model_config import ModelConfig
from colorgan.models.modes import evaluating, using_inference

# Classes that a line names.
MAX_NAMED = 10


@dataclass(frozen=True)
class DownstreamTask:
    """What a task is made of.

    Attributes:
        name: As in the recipe's `task`.
        kind: Of its model folders.
        title: For headings.
        targets: Labels that it learns from.
        labels: Those labels in words, for errors.
        new_layers: How the names of the layers begin that the task adds to a generator; all others
            are pretrained.
        has_background: The network has an output for the background beside those of the classes.
        has_palette: Its pictures are painted in the set's colors.
        headline: Name of the score that it is judged by, the first that an evaluation has.
        loss: Of outputs, a micro-batch and settings: a scalar, a mean over the
            micro-batch's images.
        score: Of predictions, ranks, config and a number of pictures. Called on all ranks.
        text: The scores in one line.
    """

    name: TaskName
    kind: Literal["classifier", "segmenter", "detector"]
    title: str
    targets: Targets
    labels: str
    new_layers: str
    has_background: bool
    has_palette: bool
    headline: tuple[str, ...]
    loss: Callable[[Tensor, Batch, LossSettings], Tensor]
    score: Callable[[Iterable[Prediction], Ranks, ModelConfig, int], Evaluation]
    text: Callable[[ModelConfig, Mapping[str, float]], str]

    def num_outputs(self, num_classes: int) -> int:
        """Return the network's outputs per image, pixel or point for a set's number of classes."""
        return num_classes + self.has_background


# Everything that asks which task it is looks here, so that a new one is one more entry.
TASKS: dict[str, DownstreamTask] = {
    "classify": DownstreamTask(
        name="classify",
        kind="classifier",
        title="Multilabel classification",
        targets="classes",
        labels="classes",
        new_layers="head.",
        has_background=False,
        has_palette=False,
        headline=("mAP",),
        loss=classification_loss,
        score=score_classifier,
        text=classifier_text,
    ),
    "segment": DownstreamTask(
        name="segment",
        kind="segmenter",
        title="Semantic segmentation",
        targets="mask",
        labels="masks",
        new_layers="decoder.output.",
        has_background=True,
        has_palette=True,
        headline=("mIoU_own_size", "mIoU"),
        loss=segmentation_loss,
        score=score_segmenter,
        text=segmenter_text,
    ),
    "detect": DownstreamTask(
        name="detect",
        kind="detector",
        title="Object detection",
        targets="boxes",
        labels="boxes",
        new_layers="head.",
        has_background=False,
        has_palette=True,
        headline=("AP50", "AP"),
        loss=batch_detection_loss,
        score=score_detector,
        text=detector_text,
    ),
}


def task_of_kind(kind: str) -> DownstreamTask:
    """Return the task whose models are of a kind.

    Raises:
        KeyError: No task has such models (generators and encoders).
    """
    return {task.kind: task for task in TASKS.values()}[kind]  # type: ignore[index]


def evaluate_model(
    model: nn.Module,
    config: ModelConfig,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    seed: int,
    num_pictures: int = 0,
) -> Evaluation:
    """Score a fine-tuned model with its config's inference behavior. Called on all ranks.

    The same on all.

    Args:
        model: On the ranks' device; left in the mode it was in.
        config: Its kind says which task's scores they are.
        batches: Of this rank, each image of the set once over all ranks.
        ranks: This process's place among the ranks.
        seed: Of the dropout masks of "paper" inference.
        num_pictures: Pictures of rank 0's first images to keep.
    """
    task = task_of_kind(config.kind)
    # Rank 0's alone: pictures need no other rank, and copies to the host cost time.
    shown = num_pictures if ranks.main else 0
    with using_inference(model, config.inference), evaluating(model), torch.inference_mode():
        return task.score(predictions(model, batches, seed), ranks, config, shown)


def scores_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    """Return the scores of a fine-tuned model in one line, with what they are of."""
    text = task_of_kind(config.kind).text(config, scores)
    present = f"{scores['classes']:.0f} of {config.architecture.num_outputs} classes present"
    return f"{text} ({scores['images']:.0f} images, {present}; {config.inference} inference)"


def undefined_text(evaluation: Evaluation) -> str:
    """Return a line that names the classes without a score, or "" where each class has one."""
    names = [
        name
        for name, score in evaluation.record.per_class.items()
        if score is None or score != score
    ]
    if not names:
        return ""

    shown = ", ".join(names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"not scored, as no image of the set shows them: {shown}{more}"
