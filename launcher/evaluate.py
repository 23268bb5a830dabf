"""Score a model folder on a packed set: colours for a generator, classes or masks for a fine-tuned model."""

from __future__ import annotations

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.distributed.ranks import joined_ranks
from colorgan.errors import ColorganError
from colorgan.evaluation.evaluate import EvaluateSettings, evaluate
from shards.errors import ShardError


def main(argv: list[str]) -> int:
    """Score; return the exit status."""
    settings = parse(
        EvaluateSettings,
        argv,
        verb="accelerate launch launcher/evaluate.py",
        description=__doc__ or "",
        next_line="python launcher/colorize.py --generator DIR --out DIR PHOTO...",
    )

    with joined_ranks(timeout_s=settings.timeout_s) as ranks:
        evaluate(settings, ranks)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
