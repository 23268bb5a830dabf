"""Judge a generator by its frozen features: linear classifiers, few labels, nearest neighbors."""

from __future__ import annotations

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from colorgan.probes.settings import ProbeSettings
from shards.errors import ShardError


def main(argv: list[str]) -> int:
    """Probe; return the exit status."""
    command = command_text("probe")
    settings = parse(
        ProbeSettings,
        argv,
        command=command,
        description=__doc__ or "",
        next_line=f"{command} --model random --like DIR --data.train DIR --data.test DIR --out DIR",
        examples=(
            f"{command} --model runs/pretrain/generator --data.train shards/voc-train "
            "--data.test shards/voc-val --out runs/pretrain/probe",
        ),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.distributed.ranks import joined_ranks
    from colorgan.probes.probe import run

    # Deterministic by default: levels are compared by tenths of a point.
    with joined_ranks(timeout_s=settings.timeout_s) as ranks:
        run(settings, ranks)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
