"""Fine-tuning as `colorgan.training.loop.fit` trains it: the task's phase, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colorgan.config.recipe import FinetuneRecipe, StageRecipe
from colorgan.data import Batch
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.evaluation.downstream import TASKS, DownstreamTask
from colorgan.models.modes import dropout_keys, set_dropout_keys
from colorgan.tasks.initial_model import new_layers
from colorgan.training.automatic import strategy_settings
from colorgan.training.schedules import learning_rate_schedule

MODEL = "model"


class TransferTask:
    """One phase; the loss is a mean over the global batch however it is cut into micro-batches."""

    def __init__(self, phase: Phase, task: DownstreamTask, *, void: str, seed: int) -> None:
        self.phases: Sequence[Phase] = (phase,)
        self._task = task
        self._void = void
        self._seed = seed

    def loss(
        self, phase: Phase, batch: Batch, networks: Mapping[str, Network]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch; nothing further to log."""
        set_dropout_keys(phase.module, dropout_keys(self._seed, batch.positions_B))
        outputs = networks[MODEL](batch.lab_B3HW[:, :1]).float()
        return self._task.loss(outputs, batch, self._void), {}


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
    """Return the task of one stage, with a fresh optimizer; its features learn or are frozen."""
    task = TASKS[recipe.task]
    _freeze(model, new_layers(model, task), frozen=stage.recipe.features == "frozen")

    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (recipe.beta1, recipe.beta2)
    optimizer = torch.optim.Adam(learned, lr=stage.recipe.learning_rate, betas=betas, fused=True)
    rate = learning_rate_schedule(
        stage.recipe.learning_rate,
        schedule=stage.recipe.schedule,
        total_images=stage.last_image - stage.first_image,
        first_image=stage.first_image,
    )
    phase = Phase(MODEL, model, optimizer, rate)
    return TransferTask(phase, task, void=recipe.void, seed=recipe.seed)


def _freeze(model: nn.Module, learned_anew: tuple[str, ...], *, frozen: bool) -> None:
    """Put the model in training mode.

    Where `frozen`, all but the new layers keep their weights and statistics.
    """
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(learned_anew))

    for name, part in model.named_modules() if frozen else ():
        if not f"{name}.".startswith(learned_anew):
            part.training = False


def stage_strategy(recipe: FinetuneRecipe, ranks: Ranks, task: TransferTask) -> Strategy:
    """Return the strategy that trains a stage. Called on all ranks."""
    settings = strategy_settings(recipe, gradient_clip_norm=recipe.gradient_clip_norm)
    return open_strategy(ranks, task.phases, settings)
