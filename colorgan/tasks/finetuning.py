"""Downstream tasks on the pretrained U-Net: multilabel classification, semantic segmentation, object detection.

A stage has its own optimizer and may freeze the pretrained features (Treneska et al. 2022: frozen first, then all
weights at a lower rate). `TransferTask` is what `colorgan.training.loop.fit` trains; colorgan/evaluation/task_scores.py evaluates.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.config.recipe import FinetuneRecipe
from colorgan.config.settings import dump_recipe
from colorgan.data import Loader, ShardSet, Targets, open_loaders, open_set
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.record import EVALUATION, Evaluation, write_evaluation
from colorgan.evaluation.task_scores import score_model, scores_text
from colorgan.models.model_folder import (
    ModelConfig,
)
from colorgan.runs.run import EXIT_STOPPED, Run, RunResult
from colorgan.tasks.initial_model import initial_model
from colorgan.tasks.transfer import MODEL, Stage, _stage_strategy, build_stage, stages_in_images
from colorgan.training.loop import Hooks, StopSignals, fit
from colorgan.training.memory import memory_bytes
from colorgan.training.plan import check_batch, plan_text
from colorgan.training.schedules import intervals


def finetune(
    recipe: FinetuneRecipe,
    ranks: Ranks,
    *,
    model: nn.Module,
    config: ModelConfig,
    stages: list[Stage],
    data_digest: str,
    train: Loader,
    val: Loader | None,
) -> RunResult:
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
                evaluation = score_model(
                    model, config, batches, ranks, seed=recipe.seed, num_pictures=num_pictures
                )
                evaluations.clear()
                evaluations[images_seen] = evaluation
                run.record("validate", images_seen, evaluation.scores)
                run.message(scores_text(config, evaluation.scores))

        images_seen = _train_stages(recipe, run, stop, model, stages, train, score)
        if images_seen >= total_images:
            ranks.on_all_ranks(
                lambda: _write_results(run, config, images_seen, evaluations.get(images_seen))
            )
        return RunResult(
            images_seen,
            stop.agreed,
            evaluations[images_seen].scores if images_seen in evaluations else {},
        )


def _write_results(
    run: Run, config: ModelConfig, images_seen: int, evaluation: Evaluation | None
) -> None:
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
        limits = intervals(recipe, stage.last_image)
        images_seen = fit(task, strategy, train, limits, hooks, stop, images_seen=images_seen)
        run.finish_saving()
        if stop.agreed:
            break
    return images_seen


TARGETS: dict[str, Targets] = {"classify": "classes", "segment": "mask", "detect": "boxes"}


def run(recipe: FinetuneRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks."""
    if not recipe.data.train:
        raise UsageError(
            "data.train is not given: name a folder that launcher/pack.py has written, for instance of VOC with "
            "`python launcher/pack.py --corpus voc --root VOCdevkit --split train --out DIR`"
        )
    shards = open_set(recipe.data.train, *recipe.data.cache, ranks)
    val_shards = open_labelled_val(recipe, shards, ranks)
    micro = check_batch(recipe, ranks, shards.num_samples)
    model, config = initial_model(recipe, shards.classes, shards.palette)
    stages = stages_in_images(recipe, shards.num_samples)
    # A generator brings its own size and normalisation: the loader follows the model.
    with open_loaders(
        recipe,
        ranks,
        shards,
        val_shards,
        micro_batch_size=micro,
        targets=TARGETS[recipe.task],
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
    ) as loaders:
        if recipe.dry_run:
            text = plan_text(
                total_images=stages[-1].last_image,
                num_samples=shards.num_samples,
                num_shards=len(shards.shard_sizes),
                recipe=recipe,
                ranks=ranks,
                micro_batch_size=micro,
                memory=memory_bytes({MODEL: model}, config.architecture.image_size, micro),
            )
            if ranks.main:
                print(f"{dump_recipe(recipe)}\n{text}\nDry run: nothing was trained.")
            return 0
        outcome = finetune(
            recipe,
            ranks,
            model=model,
            config=config,
            stages=stages,
            data_digest=shards.digest,
            train=loaders.train,
            val=loaders.val,
        )
    if ranks.main and outcome.stopped:
        print(
            f"{outcome.stopped}: saved at {outcome.images_seen:,} images; the same command goes on from there"
        )
    elif ranks.main:
        print(
            scores_text(config, outcome.scores) if outcome.scores else "No --data.val: not scored"
        )
        data = recipe.data.val[0] if recipe.data.val else "DIR"
        print(
            f"Next: accelerate launch launcher/evaluate.py --model {recipe.run / MODEL} --data {data}"
        )
    return EXIT_STOPPED if outcome.stopped else 0


def open_labelled_val(recipe: FinetuneRecipe, shards: ShardSet, ranks: Ranks) -> ShardSet | None:
    """Open the validation set; its classes must be those of the training set. Called on all ranks."""
    if not recipe.data.val:
        return None
    val_shards = open_set(recipe.data.val, *recipe.data.cache, ranks)
    if val_shards.classes != shards.classes:
        raise UsageError(
            f"{recipe.data.val[0]} has other classes than {recipe.data.train[0]} ({len(val_shards.classes)} and "
            f"{len(shards.classes)}): validate on a split of the same corpus"
        )
    return val_shards
