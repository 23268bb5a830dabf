"""Classify, segment, detect: losses and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.config.recipe import FinetuneRecipe, StageRecipe
from colorgan.data import Batch
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import StrategySettings, open_strategy
from colorgan.evaluation.picture_grids import VOID
from colorgan.models.modes import dropout_keys, set_dropout_keys
from colorgan.tasks.detection_loss import detection_loss
from colorgan.tasks.initial_model import new_layers
from colorgan.training.schedules import learning_rate_schedule

MODEL = "model"


class TransferTask:
    """One phase; the loss is a mean over the global batch however it is cut into micro-batches.

    classify: binary cross-entropy over classes. segment: cross-entropy over all pixels of the batch, void ones as
    background (the reference's code) or with no loss (the usual way; they still count in the mean's denominator, so
    that the loss does not depend on how a batch is cut). detect: FCOS's loss, see colorgan/tasks/detection_loss.py.
    """

    def __init__(
        self, phase: Phase, *, task: Literal["classify", "segment", "detect"], void: str, seed: int
    ) -> None:
        self.phases: Sequence[Phase] = (phase,)
        self._task = task
        self._void = void
        self._seed = seed

    def loss(
        self, phase: Phase, batch: Batch, networks: Mapping[str, Network]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch; nothing further to log."""
        set_dropout_keys(phase.module, dropout_keys(self._seed, batch.positions_B))
        logits = networks[MODEL](batch.lab_B3HW[:, :1]).float()
        if self._task == "classify":
            return classification_loss(logits, batch), {}
        if self._task == "detect":
            assert batch.boxes is not None
            return detection_loss(logits, batch.boxes), {}
        return segmentation_loss(logits, batch, void=self._void), {}


def classification_loss(logits_BC: Tensor, batch: Batch) -> Tensor:
    """Return the mean binary cross-entropy; difficult objects count as there."""
    assert batch.classes_BC is not None
    return F.binary_cross_entropy_with_logits(logits_BC, batch.classes_BC)


def segmentation_loss(logits_BCHW: Tensor, batch: Batch, *, void: str) -> Tensor:
    """Return the mean cross-entropy; `void` pixels have none, or count as background."""
    assert batch.mask_BHW is not None
    mask_BHW = batch.mask_BHW
    if void == "background":
        mask_BHW = mask_BHW.masked_fill(mask_BHW == VOID, 0)
    return F.cross_entropy(logits_BCHW, mask_BHW, ignore_index=VOID, reduction="none").mean()


@dataclass(frozen=True)
class Stage:
    """A stage of fine-tuning on the axis of images seen, from `first_image` up to `last_image`."""

    recipe: StageRecipe
    first_image: int
    last_image: int


def stages_in_images(recipe: FinetuneRecipe, num_samples: int) -> list[Stage]:
    """Return the stages one after the other, each rounded up to whole steps."""
    stages: list[Stage] = []
    first, batch = 0, recipe.batch.global_batch_size
    for stage in recipe.stages:
        steps = max(1, -(-round(stage.epochs * num_samples) // batch))
        stages.append(Stage(stage, first, first + steps * batch))
        first += steps * batch
    return stages


def build_stage(model: nn.Module, recipe: FinetuneRecipe, stage: Stage) -> TransferTask:
    """Return the task of one stage: features frozen (and their statistics fixed) or not, a fresh Adam."""
    frozen, learnt_anew = stage.recipe.features == "frozen", new_layers(model, recipe.task)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(learnt_anew))
    if frozen:
        for name, part in model.named_modules():
            if not f"{name}.".startswith(learnt_anew):
                part.training = False
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        learnt, lr=stage.recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True
    )
    rate = learning_rate_schedule(
        stage.recipe.learning_rate,
        schedule=stage.recipe.schedule,
        total_images=stage.last_image - stage.first_image,
        first_image=stage.first_image,
    )
    phase = Phase(MODEL, model, optimizer, rate)
    return TransferTask(phase, task=recipe.task, void=recipe.void, seed=recipe.seed)


def _stage_strategy(recipe: FinetuneRecipe, ranks: Ranks, task: TransferTask) -> Strategy:
    settings = StrategySettings(
        precision=recipe.batch.precision,
        gradient_clip_norm=recipe.gradient_clip_norm,
        channels_last=recipe.batch.channels_last,
        compile=recipe.batch.compile,
    )
    return open_strategy(ranks, task.phases, settings)
