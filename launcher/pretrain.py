"""Pretrain a generator by colouring grey pictures, on this machine's GPUs or CPU.

Without data it draws, packs and trains on the built-in sample. Started again with the same command it goes on from its
last checkpoint. SIGTERM, SIGUSR2 and Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colorgan.config.command_line import dump_recipe, parse, run_verb
from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.ranks import Ranks, close_ranks, open_ranks
from colorgan.errors import ColorganError, UsageError
from colorgan.runs.run import EXIT_STOPPED, Outcome
from colorgan.tasks.pretraining import build_pretraining, pretrain, scores_text
from colorgan.training.loop import set_determinism
from colorgan.training.plan import (
    check_batch,
    eval_loader_arguments,
    images_to_see,
    memory_bytes,
    plan_text,
    train_loader_arguments,
)
from shards.errors import ShardError
from shards.loading.loader import Loader
from shards.loading.shard_set import ShardSet, open_shards

HERE = Path(__file__).resolve().parent
SAMPLE = Path("data/sample")


def main(argv: list[str]) -> int:
    """Read the recipe, join the ranks, train; return the exit status."""
    keys = [word.split("=")[0] for word in argv]
    if not {"--config", "--data.train", "-h", "--help"} & set(keys):
        argv = ["--config", "sample", *argv]
    recipe = parse(
        PretrainRecipe,
        argv,
        verb="accelerate launch launcher/pretrain.py",
        description=__doc__ or "",
        next_line="python launcher/consolidate.py --run RUN",
        recipes=HERE / "configs",
    )
    ranks = open_ranks(timeout_s=recipe.launch.timeout_s, torch_threads=recipe.launch.torch_threads)
    try:
        if not recipe.data.train and "--config" in keys and not {"sample", "--config=sample"} & set(argv):
            raise UsageError("data.train is not given: name folders that launcher/pack.py has written")
        return run(recipe if recipe.data.train else with_sample(recipe, ranks), ranks)
    finally:
        close_ranks()


def run(recipe: PretrainRecipe, ranks: Ranks) -> int:
    """Check everything that can be checked, then train (or print the plan). Called on all ranks."""
    set_determinism()
    shards = ranks.agree(lambda: open_shards(recipe.data.train, *recipe.data.cache))
    micro = check_batch(recipe, ranks, shards.num_samples)
    total = images_to_see(recipe.images, recipe.epochs, shards.num_samples, recipe.batch.global_batch_size)
    val_shards = ranks.agree(lambda: open_shards(recipe.data.val, *recipe.data.cache) if recipe.data.val else None)
    if recipe.dry_run:
        print_plan(recipe, ranks, shards, micro, total)
        return 0
    train = ranks.agree(lambda: Loader(shards, **train_loader_arguments(recipe, ranks, micro, "none")))
    val = Loader(val_shards, **eval_loader_arguments(recipe, ranks, micro, "none")) if val_shards else None
    try:
        outcome = pretrain(recipe, ranks, total_images=total, data_digest=shards.digest, train=train, val=val)
    finally:
        train.close()
        if val is not None:
            val.close()
    if ranks.main:
        tell(recipe, outcome)
    return EXIT_STOPPED if outcome.stopped else 0


def with_sample(recipe: PretrainRecipe, ranks: Ranks) -> PretrainRecipe:
    """Draw and pack the built-in sample at the network's size (rank 0); return the recipe that reads it."""
    policy = f"squash:{recipe.network.image_size}"
    folders = {split: SAMPLE / policy.replace(":", "-") / split for split in ("train", "val")}
    failed = ""
    if ranks.main:
        print(
            "No --data.train: training on the built-in sample (drawn shapes, no benchmark). For COCO:\n"
            "  python launcher/pack.py --corpus coco --root COCO --split train --out shards/coco-train\n"
            "  accelerate launch launcher/pretrain.py --config coco_paper --data.train shards/coco-train",
            flush=True,
        )
        for split, folder in folders.items():
            words = {"corpus": "sample", "root": SAMPLE / "raw", "split": split, "out": folder, "image": policy}
            command = [sys.executable, str(HERE / "pack.py"), *(f"--{key}={value}" for key, value in words.items())]
            if not failed and subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
                failed = f"the built-in sample could not be packed into {folder}: see the message above"
    if failed := ranks.gather(failed)[0]:
        raise UsageError(failed)
    data = {"train": (folders["train"],), "val": recipe.data.val or (folders["val"],)}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def print_plan(recipe: PretrainRecipe, ranks: Ranks, shards: ShardSet, micro: int, total: int) -> None:
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
            {name: phase.module for name, phase in strategy.phases.items()}, recipe.network.image_size, micro
        ),
    )
    if ranks.main:
        print(f"{dump_recipe(recipe)}\n{text}\nDry run: nothing was trained.")


def tell(recipe: PretrainRecipe, outcome: Outcome) -> None:
    """Print how it ended and what to run next. Rank 0 only."""
    if outcome.stopped:
        print(f"{outcome.stopped}: saved at {outcome.images_seen:,} images; the same command goes on from there")
        return
    print(f"Pictures: {recipe.run / 'pictures'}   log: {recipe.run / 'log.jsonl'}")
    if outcome.scores:
        print(scores_text(outcome.scores))
    print(f"Next: python launcher/consolidate.py --run {recipe.run}")


if __name__ == "__main__":
    run_verb(main, ColorganError, ShardError)
