"""The pretext task: a conditional GAN that colours grey pictures (Treneska et al. 2022; Isola et al. 2017).

`PretrainTask` is what `colorgan.training.loop.fit` trains; `build_pretraining` translates a recipe into it; `pretrain` is
the whole job on a run folder.
"""

from __future__ import annotations

from colorgan.config.recipe import PretrainRecipe
from colorgan.config.settings import dump_recipe
from colorgan.data import Loader, ShardSet, open_loaders, open_set
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.generator_scores import mean_scores, save_grid, score_coloring, scores_text
from colorgan.models.model_folder import Architecture, ModelConfig
from colorgan.runs.run import EXIT_STOPPED, Run, RunResult
from colorgan.tasks.colorization import GENERATOR, build_pretraining
from colorgan.training.loop import Hooks, StopSignals, fit
from colorgan.training.memory import memory_bytes
from colorgan.training.plan import check_batch, plan_text
from colorgan.training.schedules import images_to_see, intervals


def pretrain(
    recipe: PretrainRecipe,
    ranks: Ranks,
    *,
    total_images: int,
    data_digest: str,
    train: Loader,
    val: Loader | None,
) -> RunResult:
    """Train in the recipe's run folder, from its newest checkpoint if there is one. Called on all ranks.

    Raises:
        UsageError: the folder holds a run of another recipe.
        CheckpointError: of other data, or no checkpoint is intact, or one could not be written.
        TrainingError: a loss is not a finite number.
    """
    task, strategy = build_pretraining(recipe, ranks, total_images)
    model = ModelConfig(
        kind="generator",
        architecture=Architecture(**recipe.network.model_dump(exclude={"ab_scale"})),
        ab_scale=recipe.network.ab_scale,
    )
    with (
        StopSignals() as stop,  # until the run folder is left: the launcher's SIGTERM must not hide why
        Run(
            recipe,
            ranks,
            total_images=total_images,
            data_digest=data_digest,
            model=model,
            model_role=GENERATOR,
            title="pretrain",
        ) as run,
    ):
        found = run.restore()
        images_seen = run.load(strategy, found) if found else 0
        scores: dict[str, float] = {}

        def validate(images_seen: int) -> None:
            if val is not None:
                scores.update(_validate(run, strategy, val, images_seen))

        hooks = Hooks(
            lambda step: run.report(step, train),
            validate,
            lambda images_seen: run.save(strategy, images_seen),
            run.watchdog.note,
        )
        if images_seen >= total_images:
            run.message(f"this run has seen its {total_images:,} images: nothing to train")
            validate(images_seen)
        images_seen = fit(
            task,
            strategy,
            train,
            intervals(recipe, total_images),
            hooks,
            stop,
            images_seen=images_seen,
        )
        run.finish_saving()
        return RunResult(images_seen, stop.agreed, scores)


def _validate(run: Run, strategy: Strategy, val: Loader, images_seen: int) -> dict[str, float]:
    """Score the held-out pictures, log them, save the picture. Called on all ranks."""
    recipe = run.recipe
    colored = score_coloring(
        strategy.evaluated(GENERATOR),
        run.watchdog.moving(val.eval_batches(), "validate", images_seen),
        ab_scale=recipe.network.ab_scale,
        seed=recipe.seed,
        autocast=strategy.autocast(),
        num_pictures=recipe.output.num_pictures if run.ranks.main else 0,
    )
    scores = mean_scores(colored, run.ranks)
    run.record("validate", images_seen, scores)
    run.message(scores_text(scores))
    if run.ranks.main:
        save_grid(run.folder / "pictures" / f"images-{images_seen:012d}.png", colored)
    return scores


def run(recipe: PretrainRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks."""
    shards = open_set(recipe.data.train, *recipe.data.cache, ranks)
    micro = check_batch(recipe, ranks, shards.num_samples)
    total = images_to_see(
        recipe.images, recipe.epochs, shards.num_samples, recipe.batch.global_batch_size
    )
    val_shards = open_set(recipe.data.val, *recipe.data.cache, ranks) if recipe.data.val else None
    if recipe.dry_run:
        print_plan(recipe, ranks, shards, micro, total)
        return 0
    with open_loaders(recipe, ranks, shards, val_shards, micro_batch_size=micro) as loaders:
        outcome = pretrain(
            recipe,
            ranks,
            total_images=total,
            data_digest=shards.digest,
            train=loaders.train,
            val=loaders.val,
        )
    if ranks.main:
        tell(recipe, outcome)
    return EXIT_STOPPED if outcome.stopped else 0


def print_plan(
    recipe: PretrainRecipe, ranks: Ranks, shards: ShardSet, micro: int, total: int
) -> None:
    """Print the resolved recipe and what a run of it would do. Rank 0 prints."""
    _, strategy = build_pretraining(recipe, ranks, total)
    text = plan_text(
        total_images=total,
        num_samples=shards.num_samples,
        num_shards=len(shards.shard_sizes),
        recipe=recipe,
        ranks=ranks,
        micro_batch_size=micro,
        memory=memory_bytes(
            {name: phase.module for name, phase in strategy.phases.items()},
            recipe.network.image_size,
            micro,
        ),
    )
    if ranks.main:
        print(f"{dump_recipe(recipe)}\n{text}\nDry run: nothing was trained.")


def tell(recipe: PretrainRecipe, outcome: RunResult) -> None:
    """Print how it ended and what to run next. Rank 0 only."""
    if outcome.stopped:
        print(
            f"{outcome.stopped}: saved at {outcome.images_seen:,} images; the same command goes on from there"
        )
        return
    print(f"Pictures: {recipe.run / 'pictures'}   log: {recipe.run / 'log.jsonl'}")
    if outcome.scores:
        print(scores_text(outcome.scores))
    print(f"Next: python launcher/consolidate.py --run {recipe.run}")
