"""Pretrain a generator by coloring grey images, on this machine's GPUs or CPU.

Without data it draws, packs and trains on the built-in sample. Rerunning the command resumes it
from its last checkpoint. SIGTERM, SIGHUP, SIGUSR2 and Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

from pathlib import Path

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.config.first_line import print_first_lines
from colorgan.config.recipe import PretrainRecipe
from colorgan.errors import ColorganError, UsageError
from shards.errors import ShardError

HERE = Path(__file__).resolve().parent


def read_settings(argv: list[str]) -> PretrainRecipe:
    """Return the recipe, checked; `colorgan pretrain --nproc N` asks for it before its ranks."""
    keys = {word.split("=")[0] for word in argv}
    # Without a word about data, a newcomer means: show me.
    on_sample = not {"--config", "--data.train"} & keys
    recipe = parse(
        PretrainRecipe,
        ["--config", "sample", *argv] if on_sample else argv,
        command=command_text("pretrain"),
        description=__doc__ or "",
        next_line=f"{command_text('consolidate')} --run RUN",
        recipes=HERE / "configs",
        examples=(
            f"{command_text('pretrain')}",
            f"{command_text('pretrain')} --config coco_paper --data.train shards/coco-train",
            f"{command_text('pretrain')} --data.train shards/photos/train --run runs/a --epochs 20",
        ),
    )
    # A recipe of the user's own without data is a mistake, not a wish for the sample.
    if not recipe.data.train and not on_sample and recipe_name(argv) != "sample":
        raise UsageError("data.train is not given: name folders that launcher/pack.py has written")
    return recipe


def main(argv: list[str]) -> int:
    """Read the recipe, join the ranks, train; return the exit status."""
    recipe = read_settings(argv)
    print_first_lines("pretrain", recipe)
    # Torch is imported after the settings have been checked.
    from colorgan.distributed.ranks import joined_ranks
    from colorgan.tasks.pretraining import run
    from colorgan.tasks.sample_data import with_sample

    launch = recipe.launch
    with joined_ranks(
        timeout_s=launch.timeout_s,
        torch_threads=launch.torch_threads,
        deterministic=launch.deterministic,
        tf32=True,
    ) as ranks:
        if not recipe.data.train:
            recipe = with_sample(recipe, ranks, HERE / "pack.py")
        return run(recipe, ranks)


def recipe_name(argv: list[str]) -> str:
    """Return the name of the recipe that `--config` gives; empty without one."""
    words = [part for word in argv for part in word.split("=", 1)]
    if "--config" not in words[:-1]:
        return ""
    return Path(words[words.index("--config") + 1]).stem


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
