"""Score a model folder on a packed set: colors for a generator, labels for a fine-tuned model."""

from __future__ import annotations

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from colorgan.evaluation.settings import EvaluateSettings
from shards.errors import ShardError


def main(argv: list[str]) -> int:
    """Score; return the exit status."""
    settings = parse(
        EvaluateSettings,
        argv,
        command=command_text("evaluate"),
        description=__doc__ or "",
        next_line=f"{command_text('report')} --out DIR RUN...",
        examples=(
            f"{command_text('evaluate')} --model runs/pretrain/generator --data shards/coco-val "
            "--out runs/pretrain/evaluation",
        ),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.distributed.ranks import joined_ranks
    from colorgan.evaluation.evaluate import evaluate

    # No TF32 here: scores must agree between a GPU and a CPU.
    with joined_ranks(timeout_s=settings.timeout_s, device=settings.device) as ranks:
        evaluate(settings, ranks)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
