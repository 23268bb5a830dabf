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
from colorgan.evaluation.losses import LossSettings
from colorgan.models.modes import dropout_keys, set_dropout_keys
from colorgan.tasks.augmentation import jittered
from colorgan.tasks.initial_model import new_layers
from colorgan.tasks.parameter_groups import freeze, parameter_groups
from colorgan.training.automatic import strategy_settings
from colorgan.training.schedules import learning_rate_schedule

MODEL = "model"


class TransferTask:
    """One phase; the loss is a mean over the global batch however it is cut into micro-batches."""

    def __init__(
        self,
        phase: Phase,
        task: DownstreamTask,
        settings: LossSettings,
        *,
        seed: int,
        luminance_jitter: float = 0.0,
    ) -> None:
        self.phases: Sequence[Phase] = (phase,)
        self._task = task
        self._settings = settings
        self._seed = seed
        self._jitter = luminance_jitter

    def share(self, batch: Batch, networks: Mapping[str, Network]) -> object:
        """Share nothing: there is one turn."""
        return None

    def loss(
        self,
        phase: Phase,
        batch: Batch,
        networks: Mapping[str, Network],
        shared: object = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch; nothing further to log."""
        # By position, so that dropout is the same on any number of ranks.
        set_dropout_keys(phase.module, dropout_keys(self._seed, batch.positions_B))
        luminance_B1HW = jittered(
            batch.lab_B3HW[:, :1], self._jitter, seed=self._seed, positions_B=batch.positions_B
        )
        # Losses sum over pixels and classes: bf16 would lose the small terms.
        outputs = networks[MODEL](luminance_B1HW).float()
        return self._task.loss(outputs, batch, self._settings), {}


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
        # Rounded first: 1.1 x 100 is a hair over 110, which would cost another step.
        steps = max(1, -(-round(stage.epochs * num_samples) // batch))
        stages.append(Stage(stage, first, first + steps * batch))
        first += steps * batch
    return stages


def build_stage(
    model: nn.Module,
    recipe: FinetuneRecipe,
    stage: Stage,
    class_weights_C: Tensor | None = None,
) -> TransferTask:
    """Return the task of one stage, with a fresh optimizer; its features learn or are frozen.

    Args:
        model: Its parameters are frozen or not in place.
        recipe: Of the run.
        stage: What is frozen, and the learning rate.
        class_weights_C: One weight per output; None for equal ones.

    Raises:
        UsageError: The encoder has no levels to treat apart.
    """
    task = TASKS[recipe.task]
    # Before the optimizer, which takes the parameters that learn and no others.
    freeze(
        model,
        new_layers(model, task),
        features=stage.recipe.features == "frozen",
        levels=stage.recipe.frozen_levels,
    )

    groups = parameter_groups(
        model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    # Adam's own weight decay goes through its moments; AdamW decouples it (Loshchilov and Hutter
    # 2019).
    optimizer_kind = torch.optim.AdamW if recipe.weight_decay else torch.optim.Adam
    optimizer = optimizer_kind(
        groups, lr=stage.recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True
    )
    rate = learning_rate_schedule(
        stage.recipe.learning_rate,
        schedule=stage.recipe.schedule,
        total_images=stage.last_image - stage.first_image,
        first_image=stage.first_image,
    )
    phase = Phase(MODEL, model, optimizer, rate)
    return TransferTask(
        phase,
        task,
        LossSettings(recipe.void, class_weights_C),
        seed=recipe.seed,
        luminance_jitter=recipe.luminance_jitter,
    )


def stage_strategy(recipe: FinetuneRecipe, ranks: Ranks, task: TransferTask) -> Strategy:
    """Return the strategy that trains a stage. Called on all ranks."""
    settings = strategy_settings(recipe, gradient_clip_norm=recipe.gradient_clip_norm)
    return open_strategy(ranks, task.phases, settings)
