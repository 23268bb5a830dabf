"""Fine-tune a pretrained generator, or the same network from scratch, on labeled images.

`--task classify` learns which classes are in an image, `--task segment` the class of each pixel,
`--task detect` where the objects are. Rerunning the command resumes it from its last checkpoint.
SIGTERM, SIGHUP, SIGUSR2 and Ctrl-C save and stop with exit status 75.
"""

from __future__ import annotations

from pathlib import Path

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.config.first_line import print_first_lines
from colorgan.config.recipe import FinetuneRecipe
from colorgan.errors import ColorganError
from shards.errors import ShardError


def read_settings(argv: list[str]) -> FinetuneRecipe:
    """Return the recipe, checked; `colorgan finetune --nproc N` asks for it before its ranks."""
    data = "--data.train shards/voc-train --data.val shards/voc-val"
    masks = "--data.train shards/voc-seg-train --data.val shards/voc-seg-val"
    return parse(
        FinetuneRecipe,
        argv,
        command=command_text("finetune"),
        description=__doc__ or "",
        next_line=f"{command_text('evaluate')} --model RUN/model --data DIR",
        recipes=Path(__file__).resolve().parent / "configs",
        examples=(
            f"{command_text('finetune')} --task classify --init runs/pretrain/generator {data}",
            f"{command_text('finetune')} --task segment {masks} --epochs 10 --lr 1e-3",
        ),
    )


def main(argv: list[str]) -> int:
    """Read the recipe, join the ranks, train; return the exit status."""
    recipe = read_settings(argv)
    print_first_lines("finetune", recipe)
    # Torch is imported after the settings have been checked.
    from colorgan.distributed.ranks import joined_ranks
    from colorgan.tasks.finetuning import run

    launch = recipe.launch
    # Training may round as TF32 does; scoring does not.
    with joined_ranks(
        timeout_s=launch.timeout_s,
        torch_threads=launch.torch_threads,
        deterministic=launch.deterministic,
        tf32=True,
    ) as ranks:
        return run(recipe, ranks)


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
