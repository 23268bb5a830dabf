"""Fine-tuning on a labelled set: the work of launcher/finetune.py.

    generator/ -> initial_model -> stages -> RUN/model, RUN/evaluation

A stage has its own optimizer and may freeze the pretrained features (Treneska et al. 2022: frozen
first, then all weights at a lower rate). The tasks are described in
colorgan/evaluation/downstream.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from shlex import quote

from torch import Tensor, nn

from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.config.command import command_text
from colorgan.config.recipe import FinetuneRecipe
from colorgan.config.settings import dump_recipe
from colorgan.data import Loaders, ShardSet, check_labels, open_loaders, open_set
from colorgan.devices import exact_float32
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.downstream import TASKS, evaluate_model, scores_text, undefined_text
from colorgan.evaluation.record import EVALUATION, Evaluation, write_evaluation
from colorgan.files import replacing_folder
from colorgan.models.model_config import ModelConfig, check_norms
from colorgan.runs.recipe import saved_recipe
from colorgan.runs.run import Run, RunResult, check_folder, open_run
from colorgan.tasks.best_model import BEST, BestModel
from colorgan.tasks.class_weights import balanced_weights
from colorgan.tasks.initial_model import initial_model
from colorgan.tasks.model_card import write_card
from colorgan.tasks.transfer import (
    MODEL,
    Stage,
    TransferTask,
    build_stage,
    stage_strategy,
    stages_in_images,
)
from colorgan.training.automatic import chosen_for_device
from colorgan.training.loop import Hooks, StopSignals, fit
from colorgan.training.memory import memory_bytes
from colorgan.training.plan import check_batch, check_machine, plan_text
from colorgan.training.schedules import intervals


@dataclass(frozen=True)
class FinetuneJob:
    """What is trained, in which stages, on which data.

    Attributes:
        recipe: Names the task and the run folder.
        model: As `initial_model` returns it.
        config: Of the model.
        stages: One after the other.
        data_digest: Of the training set.
        loaders: Training images, and validation images if any.
        class_weights_C: One weight per output in the loss; None for equal ones.
        epoch_images: Images of one pass over the training set.
    """

    recipe: FinetuneRecipe
    model: nn.Module
    config: ModelConfig
    stages: list[Stage]
    data_digest: str
    loaders: Loaders
    class_weights_C: Tensor | None = None
    epoch_images: int = 0

    @property
    def total_images(self) -> int:
        """Images that the stages see in all."""
        return self.stages[-1].last_image


def finetune(job: FinetuneJob, ranks: Ranks) -> RunResult:
    """Train through the stages in the run folder, from its newest checkpoint if there is one.

    At the end `<run>/model` holds the trained network, `<run>/evaluation` its scores on the
    validation set with their evidence, and `<run>/best` the network of the best validation. Called
    on all ranks.

    Raises:
        UsageError: The folder holds a run of another recipe.
        CheckpointError: The run was trained on other data, or no checkpoint is intact.
        SaveError: A checkpoint could not be written.
        TrainingError: NaN or infinite loss.
    """
    # Before the optimizers are built: they hold references to the parameters on this device.
    job.model.to(ranks.device)
    check_machine(job.recipe, ranks, [job.model])

    # Outside the run: the launcher's SIGTERM must not hide why the run folder was left.
    with StopSignals() as stop, _open_run(job, ranks) as run:
        training = _Training(job, run, stop)
        images_seen = training.train()
        evaluation = training.evaluations.get(images_seen)
        # A stopped run writes no model: a half-trained one could be taken for the result.
        if training.is_finished(images_seen):
            ranks.on_all_ranks(lambda: _write_results(run, job.config, images_seen, evaluation))

        scores = {} if evaluation is None else evaluation.scores
        return RunResult(images_seen, stop.agreed, scores)


def _open_run(job: FinetuneJob, ranks: Ranks) -> AbstractContextManager[Run]:
    return open_run(
        job.recipe,
        ranks,
        total_images=job.total_images,
        data_digest=job.data_digest,
        model=job.config,
        model_role=MODEL,
        title=f"finetune {job.recipe.task}",
    )


def _write_results(
    run: Run, config: ModelConfig, images_seen: int, evaluation: Evaluation | None
) -> None:
    """Write the model folder, and the evaluation folder if the end was scored. Rank 0 only."""
    if not run.ranks.main:
        return

    # Through the checkpoint on disk, so that what is published is what was saved, and checked.
    written = consolidate(open_checkpoint(run.checkpoint_path(images_seen)), run.folder / MODEL)
    write_card(run.folder / MODEL, run.folder, written)
    if evaluation is not None:
        about = {
            "model": str(run.folder / MODEL),
            "data": [str(folder) for folder in run.recipe.data.val],
            "kind": config.kind,
            "inference": config.inference,
            "images_seen": images_seen,
            "classes": config.classes,
        }
        with replacing_folder(run.folder / EVALUATION) as folder:
            write_evaluation(folder, evaluation, about)


class _NoProgressError(Exception):
    """Ends a stage from within a validation, on all ranks."""

    def __init__(self, images_seen: int) -> None:
        super().__init__(images_seen)
        self.images_seen = images_seen


@dataclass
class _Training:
    """The stages of one run, and the last evaluation by its images seen."""

    job: FinetuneJob
    run: Run
    stop: StopSignals
    evaluations: dict[int, Evaluation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = TASKS[self.job.recipe.task].headline
        self.best = BestModel(self.run.folder / BEST, self.run.ranks, names)

    def is_finished(self, images_seen: int) -> bool:
        """Return whether all images were seen, or training ended early for lack of progress."""
        stale = self.best.is_stale(self.job.recipe.patience, images_seen)
        return stale or images_seen >= self.job.total_images

    def train(self) -> int:
        """Train from the run's newest checkpoint through the stages that are left.

        Return images seen.

        A finished run is scored again and left as it is. Called on all ranks.
        """
        checkpoint = self.run.checkpoint
        images_seen = checkpoint.images_seen if checkpoint else 0
        if checkpoint is not None:
            self.best.restore()
            if self.is_finished(images_seen):
                self._score_finished(images_seen)
                return images_seen

        # None = None | One strategy at a time: a stage's optimizer states are freed before the next
        # one's are made.
        strategy: Strategy | None = None
        for stage in self.job.stages:
            if images_seen >= stage.last_image:
                continue

            model = self.job.model if strategy is None else strategy.release(MODEL)
            task = build_stage(model, self.job.recipe, stage, self.job.class_weights_C)
            strategy = stage_strategy(self.job.recipe, self.run.ranks, task)
            if checkpoint is not None:
                # A stage that has not begun has a fresh optimizer.
                begun = images_seen > stage.first_image
                self.run.resume(strategy, with_optimizers=begun)
                checkpoint = None

            images_seen = self._fit(task, strategy, stage, images_seen)
            # The next stage changes the weights, which a checkpoint in the background may still
            # copy.
            self.run.finish_saving()
            if self.stop.agreed or self.is_finished(images_seen):
                break
        return images_seen

    def _fit(self, task: TransferTask, strategy: Strategy, stage: Stage, images_seen: int) -> int:
        """Train one stage, to its end, a signal, or the end of progress; return images seen."""
        limits = intervals(self.job.recipe, stage.last_image)
        # Unless asked otherwise once per pass, which is what patience counts in.
        if "validate_every_images" not in self.job.recipe.output.model_fields_set:
            limits = replace(limits, validate_every_images=self.job.epoch_images)

        try:
            return fit(
                task,
                strategy,
                self.job.loaders.train,
                limits,
                self._hooks(strategy),
                self.stop,
                images_seen=images_seen,
            )
        # All ranks raise it, from the same scores: the collective save below is safe.
        except _NoProgressError as end:
            self.run.message(
                f"the last {self.job.recipe.patience} validations were no better: training ends"
            )
            self.run.save(strategy, end.images_seen)
            return end.images_seen

    def _hooks(self, strategy: Strategy) -> Hooks:
        return Hooks(
            report=lambda step: self.run.report(step, self.job.loaders.train),
            validate=lambda images_seen: self._validate(images_seen, strategy),
            save=lambda images_seen: self.run.save(strategy, images_seen),
            note=self.run.note,
        )

    def _score_finished(self, images_seen: int) -> None:
        """Score a finished run. Called on all ranks."""
        # The checkpoint's optimizer belongs to the last stage that has begun.
        begun = [stage for stage in self.job.stages if stage.first_image < images_seen]
        task = build_stage(self.job.model, self.job.recipe, begun[-1])
        strategy = stage_strategy(self.job.recipe, self.run.ranks, task)
        self.run.resume(strategy)
        self.run.message(f"this run has ended at {images_seen:,} images: nothing to train")
        self._score(images_seen, strategy)

    def _validate(self, images_seen: int, strategy: Strategy) -> None:
        """Score between steps.

        Raises:
            _NoProgressError: The recipe's patience is over.
        """
        self._score(images_seen, strategy)
        early = images_seen < self.job.total_images
        # The end of the run is saved by the loop as usual; only an earlier end needs this way out.
        if early and self.is_finished(images_seen):
            raise _NoProgressError(images_seen)

    # As launcher/evaluate.py scores: TF32 would move the fourth digit.
    @exact_float32()
    def _score(self, images_seen: int, strategy: Strategy) -> None:
        """Score on the validation set, if there is one; log and show it. Called on all ranks."""
        val = self.job.loaders.val
        if val is None:
            return

        recipe, config = self.job.recipe, self.job.config
        # Pictures and gaps in the scores are for the final result: in between they would only fill
        # the log.
        at_the_end = images_seen >= self.job.total_images
        # Whether patience ends here is known only after the scoring.
        with_pictures = at_the_end or self.best.may_end(recipe.patience)
        model = strategy.evaluated(MODEL)
        evaluation = evaluate_model(
            model,
            config,
            self.run.watchdog.moving(val.eval_batches(), "validate", images_seen),
            self.run.ranks,
            seed=recipe.seed,
            num_pictures=recipe.output.num_pictures if with_pictures else 0,
        )
        self.evaluations = {images_seen: evaluation}
        self.run.record("validate", images_seen, evaluation.scores)
        self.run.message(scores_text(config, evaluation.scores))
        self.best.consider(
            evaluation.scores,
            images_seen,
            model,
            lambda: config.model_copy(
                update={"images_seen": images_seen, "data_digest": self.job.data_digest}
            ),
        )
        if self.is_finished(images_seen):
            closing = (undefined_text(evaluation), self.best.text())
            for line in filter(None, closing):
                self.run.message(line)


def run(recipe: FinetuneRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks.

    Returns:
        The exit status.
    """
    if not recipe.data.train:
        raise UsageError(
            "data.train is not given: name a folder that launcher/pack.py has written, for "
            "instance of VOC with `python launcher/pack.py --corpus voc --root VOCdevkit --split "
            "train --out DIR`"
        )
    # Before the data is opened: a card that cannot do the precision is found in a second.
    recipe = chosen_for_device(recipe, ranks, saved_recipe(recipe.run, ranks))
    shards = open_set(recipe.data.train, *recipe.data.cache, ranks)
    val_shards = _open_val(recipe, shards, ranks)
    for each in (shards, val_shards):
        if each is not None:
            check_labels(each, TASKS[recipe.task].targets, ranks)
    # The sets are only indexed so far; all that can be refused is refused before a decoder starts.
    micro_batch_size = check_batch(recipe, ranks, shards.num_samples)
    model, config = initial_model(recipe, shards.classes, shards.palette)
    check_norms(config, 1 if config.inference == "paper" else micro_batch_size)
    stages = stages_in_images(recipe, shards.num_samples)

    # A generator brings its own size and normalisation: the loader follows the model.
    with open_loaders(
        recipe,
        ranks,
        shards,
        val_shards,
        micro_batch_size=micro_batch_size,
        targets=TASKS[recipe.task].targets,
        image_size=config.picture_size,
        fit=config.fit,
        ab_scale=config.ab_scale,
    ) as loaders:
        job = FinetuneJob(
            recipe,
            model,
            config,
            stages,
            shards.digest,
            loaders,
            class_weights_C=_class_weights(recipe, shards, ranks),
            epoch_images=_epoch_images(recipe, shards),
        )
        if recipe.dry_run:
            ranks.on_all_ranks(lambda: check_folder(recipe) if ranks.main else None)
            check_machine(recipe, ranks, [model])
            _print_plan(job, ranks, shards, micro_batch_size)
            return 0
        result = finetune(job, ranks)

    if ranks.main:
        _print_result(recipe, config, result)
    return result.exit_status


def _class_weights(recipe: FinetuneRecipe, shards: ShardSet, ranks: Ranks) -> Tensor | None:
    """Return one weight per output, None for equal ones. Called on all ranks."""
    if recipe.class_weights == "none":
        return None
    return balanced_weights(shards, TASKS[recipe.task], ranks)


def _epoch_images(recipe: FinetuneRecipe, shards: ShardSet) -> int:
    """Return the images of one pass over the training set, in whole steps."""
    batch = recipe.batch.global_batch_size
    return max(1, round(shards.num_samples / batch)) * batch


def _open_val(recipe: FinetuneRecipe, shards: ShardSet, ranks: Ranks) -> ShardSet | None:
    """Open the validation set, if any; its classes must be those of the training set.

    Called on all ranks.
    """
    if not recipe.data.val:
        return None

    val_shards = open_set(recipe.data.val, *recipe.data.cache, ranks)
    # Labels are indices into the list of classes: another list would score at random.
    if val_shards.classes != shards.classes:
        raise UsageError(
            f"{recipe.data.val[0]} has other classes than {recipe.data.train[0]} "
            f"({len(val_shards.classes)} and {len(shards.classes)}): validate on a split of the "
            "same corpus"
        )
    return val_shards


def _print_plan(job: FinetuneJob, ranks: Ranks, shards: ShardSet, micro_batch_size: int) -> None:
    """Print the resolved recipe and what a run of it would do. Rank 0 prints."""
    size = job.config.picture_size
    text = plan_text(
        total_images=job.total_images,
        num_samples=shards.num_samples,
        num_shards=len(shards.shard_sizes),
        recipe=job.recipe,
        ranks=ranks,
        micro_batch_size=micro_batch_size,
        memory=memory_bytes({MODEL: job.model}, size, micro_batch_size),
    )
    if ranks.main:
        print(f"{dump_recipe(job.recipe)}\n{text}\nDry run: nothing was trained.")


def _print_result(recipe: FinetuneRecipe, config: ModelConfig, result: RunResult) -> None:
    """Print how the run ended and the next command. Rank 0 only."""
    if result.stopped:
        print(
            f"{result.stopped}: saved at {result.images_seen:,} images; rerunning the command "
            "resumes it"
        )
        return

    if result.scores:
        print(scores_text(config, result.scores))
    else:
        print("No --data.val: not scored")
    data = quote(str(recipe.data.val[0])) if recipe.data.val else "DIR"
    model = quote(str(recipe.run / MODEL))
    print(f"Next: {command_text('evaluate')} --model {model} --data {data}")
