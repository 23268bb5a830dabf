"""Pretrain a generator by colouring grey pictures, on this machine's GPUs or CPU.

Without data it draws, packs and trains on the built-in sample. Started again with the same command it goes on from its
last checkpoint. SIGTERM, SIGUSR2 and Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.ranks import Ranks, joined_ranks
from colorgan.errors import ColorganError, UsageError
from colorgan.tasks.pretraining import run
from shards.errors import ShardError

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

    unnamed_data = "--config" in keys and not {"sample", "--config=sample"} & set(argv)
    if not recipe.data.train and unnamed_data:
        raise UsageError("data.train is not given: name folders that launcher/pack.py has written")

    launch = recipe.launch
    with joined_ranks(timeout_s=launch.timeout_s, torch_threads=launch.torch_threads) as ranks:
        return run(recipe if recipe.data.train else with_sample(recipe, ranks), ranks)


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
            words = {
                "corpus": "sample",
                "root": SAMPLE / "raw",
                "split": split,
                "out": folder,
                "image": policy,
            }
            command = [
                sys.executable,
                str(HERE / "pack.py"),
                *(f"--{key}={value}" for key, value in words.items()),
            ]
            if (
                not failed
                and subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
            ):
                failed = (
                    f"the built-in sample could not be packed into {folder}: see the message above"
                )
    if failed := ranks.gather(failed)[0]:
        raise UsageError(failed)
    data = {"train": (folders["train"],), "val": recipe.data.val or (folders["val"],)}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
