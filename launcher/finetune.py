"""Fine-tune a pretrained generator, or the same network from scratch, on labelled pictures.

`--task classify` learns which classes are in a picture, `--task segment` which class each pixel is, `--task detect`
where the objects are. Started again with the same command it goes on from its last checkpoint. SIGTERM, SIGUSR2 and
Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

from pathlib import Path

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.config.recipe import FinetuneRecipe
from colorgan.distributed.ranks import joined_ranks
from colorgan.errors import ColorganError
from colorgan.tasks.finetuning import run
from shards.errors import ShardError


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

    launch = recipe.launch
    with joined_ranks(timeout_s=launch.timeout_s, torch_threads=launch.torch_threads) as ranks:
        return run(recipe, ranks)


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
