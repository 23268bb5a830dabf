"""Pretraining without data: the built-in sample, drawn and packed at the network's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colorgan.config.command import command_text
from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError

SAMPLE = Path("data/sample")


def with_sample(recipe: PretrainRecipe, ranks: Ranks, pack_script: Path) -> PretrainRecipe:
    """Draw and pack the sample; return the recipe that reads it. Called on all ranks; rank 0 packs.

    Args:
        recipe: A recipe without training data.
        ranks: This process's place among the ranks.
        pack_script: launcher/pack.py.

    Raises:
        UsageError: The sample could not be packed.
    """
    # Squashed like the network's input: nothing is left to crop, and decoding is cheapest.
    size_policy = f"squash:{recipe.network.image_size}"
    parent = SAMPLE / size_policy.replace(":", "-")
    folders = {split: parent / split for split in ("train", "val")}

    problem = ""
    if ranks.main:
        _print_how_to_use_data()
        for split, folder in folders.items():
            if not problem and not pack_sample(
                pack_script, SAMPLE / "raw", split, folder, size_policy
            ):
                problem = f"the built-in sample could not be packed into {folder}: see above"

    # A gather, so that all ranks wait for the packing and end together if it fails.
    problem = ranks.gather(problem)[0]
    if problem:
        raise UsageError(problem)

    # The user's own validation set is kept; only what is missing is filled in.
    data = {"train": (folders["train"],), "val": recipe.data.val or (folders["val"],)}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def _print_how_to_use_data() -> None:
    print(
        "No --data.train: training on the built-in sample of drawn shapes. For COCO:\n"
        f"  {command_text('pack')} --corpus coco --root COCO --split train \\\n"
        "      --out shards/coco\n"
        f"  {command_text('pretrain')} --config coco_paper \\\n"
        "      --data.train shards/coco\n"
        f"What is slow or broken on this machine: {command_text('doctor')}",
        flush=True,
    )


def pack_sample(script: Path, root: Path, split: str, out: Path, size_policy: str) -> bool:
    """Draw the built-in sample in `root` and pack a split of it; return whether that succeeded.

    Args:
        script: launcher/pack.py, which alone knows the corpora.
        root: Where the sample is drawn, if it is not there yet.
        split: Of the sample.
        out: The packed folder.
        size_policy: As `pack.py --image` takes it.
    """
    # Seconds of work before the first bar moves.
    if not root.exists():
        print(f"Drawing the built-in sample into {root} ...", flush=True)

    settings = {
        "corpus": "sample",
        "root": root,
        "split": split,
        "out": out,
        "image": size_policy,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    # A process of its own: the corpora are above this package and must not be imported here.
    command = [sys.executable, str(script), *words]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
