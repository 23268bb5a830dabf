"""Pretraining by colorization: the work of launcher/pretrain.py.

    packed set -> pretrain -> RUN/checkpoints, RUN/pictures, RUN/log.jsonl

The task, its networks and losses are in colorgan/tasks/colorization.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Literal

from torch import nn

from colorgan.checkpoints.checkpoint import CHECKPOINTS, newest_first
from colorgan.config.command import command_text
from colorgan.config.recipe import PretrainRecipe
from colorgan.config.settings import dump_recipe
from colorgan.data import Loader, ShardSet, open_loaders, open_set
from colorgan.devices import exact_float32
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.generator_scores import (
    ShownImage,
    mean_scores,
    save_pictures,
    score_coloring,
    scores_table,
    scores_text,
)
from colorgan.evaluation.reconstruction_scores import reconstruction_text, score_reconstruction
from colorgan.runs.recipe import saved_recipe
from colorgan.runs.run import Run, RunResult, check_folder, open_run
from colorgan.tasks.colorization import (
    FROM_SEED,
    GENERATOR,
    build_networks,
    build_pretraining,
    generator_config,
)
from colorgan.tasks.starting_weights import Start, read_start
from colorgan.training.automatic import chosen_for_device
from colorgan.training.loop import Hooks, StopSignals, fit
from colorgan.training.memory import memory_bytes
from colorgan.training.plan import check_batch, check_machine, plan_text
from colorgan.training.schedules import images_to_see, intervals
from colorgan.training.work import DOCTOR_RECORD, form_text, read_rate, step_flops, work_lines


def pretrain(
    recipe: PretrainRecipe,
    ranks: Ranks,
    *,
    total_images: int,
    data_digest: str,
    train: Loader,
    val: Loader | None,
) -> RunResult:
    """Train in the recipe's run folder, from its newest checkpoint if there is one.

    Called on all ranks.

    Raises:
        UsageError: The folder holds a run of another recipe.
        CheckpointError: The run was trained on other data, or no checkpoint is intact.
        SaveError: A checkpoint could not be written.
        TrainingError: NaN or infinite loss.
    """
    start, resumed = _first_weights(recipe, ranks)
    # A run that goes on keeps what it has measured; new weights may come from other photos.
    goes_on = resumed or start.checkpoint is not None
    networks = build_networks(recipe, ranks, start)
    check_machine(recipe, ranks, networks.values(), _averaged(recipe, networks))
    task, strategy = build_pretraining(
        recipe, ranks, total_images, networks, None if goes_on else train
    )
    opened = open_run(
        recipe,
        ranks,
        total_images=total_images,
        data_digest=data_digest,
        model=generator_config(recipe),
        model_role=GENERATOR,
        title="pretrain",
    )
    # Outside the run: the launcher's SIGTERM must not hide why the run folder was left.
    with StopSignals() as stop, opened as run:
        validation = _Validation(run, strategy, val, recipe.loss.target)
        hooks = Hooks(
            report=lambda step: run.report(step, train),
            validate=validation.score,
            save=lambda images_seen: run.save(strategy, images_seen),
            note=run.note,
        )

        # Before the start's optimizers: only a run without a checkpoint of its own takes those.
        images_seen = run.resume(strategy)
        if run.checkpoint is None:
            start.load_optimizers(strategy)
            if start.text:
                run.message(f"starts from {start.text}")
            if task.prior_images:
                run.message(
                    f"prior of the color classes: measured on the first {task.prior_images:,} "
                    "training images"
                )
        if images_seen >= total_images:
            run.message(f"this run has seen its {total_images:,} images: nothing to train")
            # A finished run that is started again shows its scores instead of ending without a
            # word.
            validation.score(images_seen)

        limits = intervals(recipe, total_images)
        images_seen = fit(task, strategy, train, limits, hooks, stop, images_seen=images_seen)
        # The result names the last checkpoint: it must be on disk when this returns.
        run.finish_saving()
        return RunResult(images_seen, stop.agreed, validation.scores)


MOSTLY_GREY = 0.5


@dataclass
class _Validation:
    """Scores of the held-out images; the last ones are kept."""

    run: Run
    strategy: Strategy
    loader: Loader | None
    target: Literal["color", "luminance"]
    scores: dict[str, float] = field(default_factory=dict)

    # In float32, as launcher/evaluate.py scores: bf16 and TF32 would move the fourth digit.
    @exact_float32()
    def score(self, images_seen: int) -> None:
        """Score the held-out images, if any; log it and save pictures. Called on all ranks."""
        if self.loader is None:
            return

        run, recipe = self.run, self.run.recipe
        network = self.strategy.evaluated(GENERATOR)
        batches = run.watchdog.moving(self.loader.eval_batches(), "validate", images_seen)
        if self.target == "luminance":
            self.scores = score_reconstruction(network, batches, run.ranks, seed=recipe.seed)
            run.record("validate", images_seen, self.scores)
            run.message(reconstruction_text(self.scores))
            return

        colored = score_coloring(
            network,
            batches,
            ab_scale=recipe.network.ab_scale,
            seed=recipe.seed,
            # Rank 0 alone has pictures: they are shown once, and cost a copy to the host.
            num_pictures=recipe.output.num_pictures if run.ranks.main else 0,
        )
        self.scores = mean_scores(colored, run.ranks)
        run.record("validate", images_seen, self.scores)
        run.message(scores_text(self.scores))
        if run.ranks.main and colored.first:  # none with output.num_pictures 0
            path = run.folder / "pictures" / f"images-{images_seen:012d}.png"
            _keep_picture(run, images_seen, path, colored.first)


def _keep_picture(run: Run, images_seen: int, path: Path, shown: Sequence[ShownImage]) -> None:
    """Write validation's picture; a disk that does not take it must not end the run."""
    try:
        save_pictures(path, shown)
    except OSError as error:
        run.message(f"{path} could not be written: {error.strerror or error}")
    else:
        run.picture("validation", images_seen, path)


def _first_weights(recipe: PretrainRecipe, ranks: Ranks) -> tuple[Start, bool]:
    """Return what a run starts from, and whether it has a checkpoint. Called on all ranks.

    Raises:
        UsageError: As `read_start`.
        CheckpointError: As `read_start`.
    """
    # A run with a checkpoint has its own weights; one stopped before its first starts anew.
    saved = newest_first(recipe.run / CHECKPOINTS) if ranks.main else []
    resumed = ranks.gather(bool(saved))[0]
    return (FROM_SEED if resumed else read_start(recipe, ranks)), resumed


def run(recipe: PretrainRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks.

    Returns:
        The exit status.
    """
    recipe = chosen_for_device(recipe, ranks, saved_recipe(recipe.run, ranks))
    shards = open_set(recipe.data.train, *recipe.data.cache, ranks)
    # From the manifest, without decoding: hours of training on grey photos would teach nothing.
    _check_colors(shards)
    micro_batch_size = check_batch(recipe, ranks, shards.num_samples)
    batch = recipe.batch.global_batch_size
    total = images_to_see(recipe.images, recipe.epochs, shards.num_samples, batch)
    val_shards = open_set(recipe.data.val, *recipe.data.cache, ranks) if recipe.data.val else None
    if recipe.dry_run:
        ranks.on_all_ranks(lambda: check_folder(recipe) if ranks.main else None)
        _print_plan(recipe, ranks, shards, micro_batch_size, total)
        return 0

    with open_loaders(
        recipe, ranks, shards, val_shards, micro_batch_size=micro_batch_size
    ) as loaders:
        result = pretrain(
            recipe,
            ranks,
            total_images=total,
            data_digest=shards.digest,
            train=loaders.train,
            val=loaders.val,
        )

    if ranks.main:
        _print_result(recipe, result)
    return result.exit_status


def _check_colors(shards: ShardSet) -> None:
    """Refuse a training set that is mostly grey.

    Raises:
        UsageError: Over half of its images have next to no color.
    """
    share = shards.grey_share()
    if share > MOSTLY_GREY:
        raise UsageError(
            f"data.train: {100 * share:.0f} % of its images are near-grey, so there is little "
            "color to learn from; pack it again with --min_chroma 1.5, which leaves them out"
        )


def _print_plan(
    recipe: PretrainRecipe, ranks: Ranks, shards: ShardSet, micro_batch_size: int, total: int
) -> None:
    """Print the resolved recipe and what a run of it would do. Rank 0 prints."""
    # Really built: a recipe whose networks do not fit together fails here, not in the queue.
    # From the weights that the run itself would start with, and on its disk.
    start, _ = _first_weights(recipe, ranks)
    networks = build_networks(recipe, ranks, start)
    check_machine(recipe, ranks, networks.values(), _averaged(recipe, networks))
    num_micro_batches = recipe.batch.global_batch_size // (micro_batch_size * ranks.world_size)
    text = plan_text(
        total_images=total,
        num_samples=shards.num_samples,
        num_shards=len(shards.shard_sizes),
        recipe=recipe,
        ranks=ranks,
        micro_batch_size=micro_batch_size,
        memory=memory_bytes(
            networks,
            recipe.network.image_size,
            micro_batch_size,
            num_micro_batches,
            _averaged(recipe, networks),
        ),
        work=_work(recipe, ranks, networks, micro_batch_size, num_micro_batches, total),
    )
    if ranks.main:
        print(f"{dump_recipe(recipe)}\n{text}\nDry run: nothing was trained.")


def _averaged(recipe: PretrainRecipe, networks: Mapping[str, nn.Module]) -> nn.Module | None:
    return networks[GENERATOR] if recipe.ema_half_life_images else None


def _work(
    recipe: PretrainRecipe,
    ranks: Ranks,
    networks: Mapping[str, nn.Module],
    micro_batch_size: int,
    num_micro_batches: int,
    total: int,
) -> list[str]:
    """Return the plan's lines about a step's work and its time."""
    batch = recipe.batch
    form = form_text(batch.precision or "fp32", channels_last=batch.channels_last is True)
    on_gpu = ranks.device.type == "cuda"
    return work_lines(
        step_flops(networks, recipe.network.image_size, micro_batch_size, num_micro_batches),
        batch=batch.global_batch_size,
        total_images=total,
        # The doctor measured one GPU, or all cores of a CPU, which its ranks share.
        num_devices=ranks.world_size if on_gpu else 1,
        form=form,
        rate=read_rate(Path(DOCTOR_RECORD), form),
    )


def _print_result(recipe: PretrainRecipe, result: RunResult) -> None:
    """Print how the run ended and the next command. Rank 0 only."""
    if result.stopped:
        print(
            f"{result.stopped}: saved at {result.images_seen:,} images; rerunning the command "
            "resumes it"
        )
        return

    colors = recipe.loss.target == "color"
    folder = recipe.run / "pictures"
    # None without a validation, and of a network that gives no colors.
    pictures = f"Pictures: {folder}   " if folder.is_dir() else ""
    print(f"{pictures}log: {recipe.run / 'log.jsonl'}")
    if result.scores:
        print(f"{result.scores['images']:,.0f} held-out images:")
        print((scores_table if colors else reconstruction_text)(result.scores))
    print(f"Next: {command_text('consolidate')} --run {quote(str(recipe.run))}")
