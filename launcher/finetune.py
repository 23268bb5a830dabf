"""Fine-tune a pretrained generator, or the same network from scratch, on labelled pictures.

`--task classify` learns which classes are in a picture, `--task segment` which class each pixel is, `--task detect`
where the objects are. Started again with the same command it goes on from its last checkpoint. SIGTERM, SIGUSR2 and
Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

from pathlib import Path

from colorgan.config.command_line import dump_recipe, parse, run_verb
from colorgan.config.recipe import FinetuneRecipe
from colorgan.distributed.ranks import Ranks, close_ranks, open_ranks
from colorgan.errors import ColorganError, UsageError
from colorgan.evaluation.task_scores import scores_text
from colorgan.runs.run import EXIT_STOPPED
from colorgan.tasks.finetuning import MODEL, finetune, initial_model, stages_in_images
from colorgan.training.loop import set_determinism
from colorgan.training.plan import check_batch, eval_loader_arguments, memory_bytes, plan_text, train_loader_arguments
from shards.errors import ShardError
from shards.loading.loader import Loader
from shards.loading.shard_set import ShardSet, open_shards

TARGETS = {"classify": "classes", "segment": "mask", "detect": "boxes"}


def main(argv: list[str]) -> int:
    """Read the recipe, join the ranks, train; return the exit status."""
    recipe = parse(
        FinetuneRecipe,
        argv,
        verb="accelerate launch launcher/finetune.py",
        description=__doc__ or "",
        next_line="accelerate launch launcher/evaluate.py --model RUN/model --data DIR",
        recipes=Path(__file__).resolve().parent / "configs",
    )
    ranks = open_ranks(timeout_s=recipe.launch.timeout_s, torch_threads=recipe.launch.torch_threads)
    try:
        return run(recipe, ranks)
    finally:
        close_ranks()


def run(recipe: FinetuneRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks."""
    set_determinism()
    if not recipe.data.train:
        raise UsageError(
            "data.train is not given: name a folder that launcher/pack.py has written, for instance of VOC with "
            "`python launcher/pack.py --corpus voc --root VOCdevkit --split train --out DIR`"
        )
    shards = ranks.agree(lambda: open_shards(recipe.data.train, *recipe.data.cache))
    val_shards = ranks.agree(lambda: open_labelled_val(recipe, shards))
    micro = check_batch(recipe, ranks, shards.num_samples)
    model, config = initial_model(recipe, shards.classes, shards.palette)
    stages = stages_in_images(recipe, shards.num_samples)
    # A generator brings its own size and normalisation: the loader follows the model.
    sizes = {"image_size": config.architecture.image_size, "ab_scale": config.ab_scale}
    arguments = {**train_loader_arguments(recipe, ranks, micro, TARGETS[recipe.task]), **sizes}
    train = ranks.agree(lambda: Loader(shards, **arguments))
    val = None
    if val_shards is not None:
        val = Loader(val_shards, **{**eval_loader_arguments(recipe, ranks, micro, TARGETS[recipe.task]), **sizes})
    try:
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
            recipe, ranks, model=model, config=config, stages=stages, data_digest=shards.digest, train=train, val=val
        )
    finally:
        train.close()
        if val is not None:
            val.close()
    if ranks.main and outcome.stopped:
        print(f"{outcome.stopped}: saved at {outcome.images_seen:,} images; the same command goes on from there")
    elif ranks.main:
        print(scores_text(config, outcome.scores) if outcome.scores else "No --data.val: not scored")
        data = recipe.data.val[0] if recipe.data.val else "DIR"
        print(f"Next: accelerate launch launcher/evaluate.py --model {recipe.run / MODEL} --data {data}")
    return EXIT_STOPPED if outcome.stopped else 0


def open_labelled_val(recipe: FinetuneRecipe, shards: ShardSet) -> ShardSet | None:
    """Open the validation set; its classes must be those of the training set."""
    if not recipe.data.val:
        return None
    val_shards = open_shards(recipe.data.val, *recipe.data.cache)
    if val_shards.classes != shards.classes:
        raise UsageError(
            f"{recipe.data.val[0]} has other classes than {recipe.data.train[0]} ({len(val_shards.classes)} and "
            f"{len(shards.classes)}): validate on a split of the same corpus"
        )
    return val_shards


if __name__ == "__main__":
    run_verb(main, ColorganError, ShardError)
