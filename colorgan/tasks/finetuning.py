"""Downstream tasks on the pretrained U-Net: multilabel classification, semantic segmentation, object detection.

A stage has its own optimizer and may freeze the pretrained features (Treneska et al. 2022: frozen first, then all
weights at a lower rate). `TransferTask` is what `colorgan.training.loop.fit` trains; colorgan/evaluation/task_scores.py evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.config.recipe import FinetuneRecipe, StageRecipe
from colorgan.distributed.ranks import Network, Phase, Ranks, Strategy, open_strategy
from colorgan.errors import GeneratorError, UsageError
from colorgan.evaluation.picture_grids import VOID
from colorgan.evaluation.task_scores import Evaluation, score_model, scores_text, write_evaluation
from colorgan.models.model_folder import (
    Architecture,
    ModelConfig,
    build_model,
    check_inference,
    load_model,
    weights_digest,
)
from colorgan.models.unet import Encoder, initialise, num_downsamplings, set_dropout_keys
from colorgan.runs.run import Outcome, Run
from colorgan.tasks.detection_loss import detection_loss
from colorgan.tasks.gan_losses import dropout_keys, learning_rate_schedule
from colorgan.training.loop import Batch, EvalLoader, Hooks, Loader, StopSignals, fit
from colorgan.training.plan import cadence

MODEL = "model"
EVALUATION = "evaluation"
# The layers that a task adds to a generator: all others are the pretrained features.
NEW_LAYERS = {"classify": "head.", "segment": "decoder.output.", "detect": "head."}
KINDS: dict[str, Literal["classifier", "segmenter", "detector"]] = {
    "classify": "classifier",
    "segment": "segmenter",
    "detect": "detector",
}


class TransferTask:
    """One phase; the loss is a mean over the global batch however it is cut into micro-batches.

    classify: binary cross-entropy over classes. segment: cross-entropy over all pixels of the batch, void ones as
    background (the reference's code) or with no loss (the usual way; they still count in the mean's denominator, so
    that the loss does not depend on how a batch is cut). detect: FCOS's loss, see colorgan/tasks/detection_loss.py.
    """

    def __init__(self, phase: Phase, *, task: Literal["classify", "segment", "detect"], void: str, seed: int) -> None:
        self.phases: Sequence[Phase] = (phase,)
        self._task = task
        self._void = void
        self._seed = seed

    def loss(self, phase: Phase, batch: Batch, networks: Mapping[str, Network]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch; nothing further to log."""
        set_dropout_keys(phase.module, dropout_keys(self._seed, batch.slots_B))
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


def initial_model(
    recipe: FinetuneRecipe, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> tuple[nn.Module, ModelConfig]:
    """Return the network to fine-tune, on the CPU, and its config: drawn from the seed, or from a folder.

    Raises:
        GeneratorError: `init` is no generator's or encoder's folder, or the recipe asks for other sizes than it has.
        NetworkError: the image size does not fit the U-Net.
        UsageError: the set has no classes.
    """
    kind = KINDS[recipe.task]
    if not classes:
        raise UsageError(f"the training set has no classes to {recipe.task}: pack a labelled corpus (voc, coco)")
    num_outputs = len(classes) + (kind == "segmenter")
    pretrained, source = None, None
    if recipe.init != "scratch":
        pretrained, source = load_model(Path(recipe.init), "generator", "encoder")
        check_inference(recipe.inference, source.architecture, recipe.init)
    network = recipe.network
    num_downsamplings(network.image_size)  # a size that does not fit is told here
    shared = source.architecture.model_dump() if source else network.model_dump(exclude={"ab_scale"})
    if source:
        _check_network(recipe, source)
    config = ModelConfig(
        kind=kind,
        architecture=Architecture(**{**shared, "num_outputs": num_outputs, "head_width": recipe.head_width}),
        ab_scale=source.ab_scale if source else network.ab_scale,
        inference=recipe.inference,
        classes=classes,
        palette=palette if kind != "classifier" else (),
        void=recipe.void,
        init_digest=weights_digest(Path(recipe.init)) if source else "",
    )
    model = build_model(config)
    initialise(model, recipe.seed)
    if pretrained is not None:
        _take_features(model, pretrained, new_layers(model, recipe.task))
    return model, config


def new_layers(model: nn.Module, task: str) -> tuple[str, ...]:
    """Return how the names of the layers begin that are not pretrained: behind an encoder from elsewhere, all."""
    return (NEW_LAYERS[task],) if isinstance(model.encoder, Encoder) else ("decoder.", "head.")


def _check_network(recipe: FinetuneRecipe, source: ModelConfig) -> None:
    have = {**source.architecture.model_dump(), "ab_scale": source.ab_scale}
    for key in sorted(recipe.network.model_fields_set):
        asked = getattr(recipe.network, key)
        if asked != have[key]:
            raise GeneratorError(f"network.{key} is {asked} but {recipe.init} has {have[key]}: leave network.{key} out")


def _take_features(model: nn.Module, pretrained: nn.Module, new_layers: tuple[str, ...]) -> None:
    """Copy every weight and statistic but those of the new layers."""
    theirs = pretrained.state_dict()
    ours = model.state_dict()
    model.load_state_dict({name: ours[name] if name.startswith(new_layers) else theirs[name] for name in ours})


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
    optimizer = torch.optim.Adam(learnt, lr=stage.recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)
    rate = learning_rate_schedule(
        stage.recipe.learning_rate,
        schedule=stage.recipe.schedule,
        total_images=stage.last_image - stage.first_image,
        first_image=stage.first_image,
    )
    phase = Phase(MODEL, model, optimizer, rate)
    return TransferTask(phase, task=recipe.task, void=recipe.void, seed=recipe.seed)


def finetune(
    recipe: FinetuneRecipe,
    ranks: Ranks,
    *,
    model: nn.Module,
    config: ModelConfig,
    stages: list[Stage],
    data_digest: str,
    train: Loader,
    val: EvalLoader | None,
) -> Outcome:
    """Train through the stages in the recipe's run folder, from its newest checkpoint if there is one.

    At the end `<run>/model` holds the trained network and `<run>/evaluation` its scores on `val` with their evidence.
    Called on all ranks; errors as in `pretraining.pretrain`.
    """
    model.to(ranks.device)
    total_images = stages[-1].last_image
    with (
        StopSignals() as stop,  # until the run folder is left: the launcher's SIGTERM must not hide why
        Run(
            recipe,
            ranks,
            total_images=total_images,
            data_digest=data_digest,
            model=config,
            model_role=MODEL,
            title=f"finetune {recipe.task}",
        ) as run,
    ):
        evaluations: dict[int, Evaluation] = {}  # by images seen; the last one only

        def score(images_seen: int, strategy: Strategy) -> None:
            if val is not None:
                batches = run.watchdog.moving(val.eval_batches(), "validate", images_seen)
                num_pictures = recipe.output.num_pictures if images_seen >= total_images else 0
                model = strategy.evaluated(MODEL)
                evaluation = score_model(model, config, batches, ranks, seed=recipe.seed, num_pictures=num_pictures)
                evaluations.clear()
                evaluations[images_seen] = evaluation
                run.record("validate", images_seen, evaluation.scores)
                run.message(scores_text(config, evaluation.scores))

        images_seen = _train_stages(recipe, run, stop, model, stages, train, score)
        if images_seen >= total_images:
            ranks.agree(lambda: _write_results(run, config, images_seen, evaluations.get(images_seen)))
        return Outcome(images_seen, stop.agreed, evaluations[images_seen].scores if images_seen in evaluations else {})


def _write_results(run: Run, config: ModelConfig, images_seen: int, evaluation: Evaluation | None) -> None:
    """Write the model folder, and the evaluation folder where the end was scored. Rank 0 only."""
    if not run.ranks.main:
        return
    consolidate(open_checkpoint(run.checkpoint_path(images_seen)), run.folder / MODEL)
    if evaluation is not None:
        about = {
            "model": str(run.folder / MODEL),
            "data": [str(folder) for folder in run.recipe.data.val],
            "kind": config.kind,
            "inference": config.inference,
            "images_seen": images_seen,
            "classes": config.classes,
        }
        write_evaluation(run.folder / EVALUATION, evaluation, about)


def _train_stages(
    recipe: FinetuneRecipe,
    run: Run,
    stop: StopSignals,
    model: nn.Module,
    stages: list[Stage],
    train: Loader,
    score: Callable[[int, Strategy], None],
) -> int:
    """Train from the run's newest checkpoint through the stages that are left; return images seen.

    A finished run is scored again and left as it is. Called on all ranks.
    """
    found = run.restore()
    images_seen = found.images_seen if found else 0
    done = images_seen >= stages[-1].last_image
    strategy: Strategy | None = None
    for stage in stages if not done else stages[-1:]:
        if images_seen >= stage.last_image and not done:
            continue
        model = strategy.release(MODEL) if strategy is not None else model
        task = build_stage(model, recipe, stage)
        strategy = _stage_strategy(recipe, run.ranks, task)
        if found is not None:  # a stage that has not begun has a fresh optimizer
            run.load(strategy, found, with_optimizers=images_seen > stage.first_image)
            found = None
        if done:
            run.message(f"this run has seen its {images_seen:,} images: nothing to train")
            score(images_seen, strategy)
            break
        stage_strategy = strategy
        hooks = Hooks(
            lambda step: run.report(step, train),
            lambda images, strategy=stage_strategy: score(images, strategy),  # type: ignore[misc]
            lambda images, strategy=stage_strategy: run.save(strategy, images),  # type: ignore[misc]
            run.watchdog.note,
        )
        limits = cadence(recipe, stage.last_image)
        images_seen = fit(task, strategy, train, limits, hooks, stop, images_seen=images_seen)
        run.finish_saving()
        if stop.agreed:
            break
    return images_seen


def _stage_strategy(recipe: FinetuneRecipe, ranks: Ranks, task: TransferTask) -> Strategy:
    return open_strategy(
        ranks,
        task.phases,
        precision=recipe.batch.precision,
        gradient_clip_norm=recipe.gradient_clip_norm,
        channels_last=recipe.batch.channels_last,
        compile=recipe.batch.compile,
    )
