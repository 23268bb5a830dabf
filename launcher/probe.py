"""Judge a pretrained generator by its frozen features: linear classifiers, few labels, nearest neighbours."""

from __future__ import annotations

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.distributed.ranks import joined_ranks
from colorgan.errors import ColorganError
from colorgan.probes.probe import ProbeSettings, run
from shards.errors import ShardError


def main(argv: list[str]) -> int:
    """Probe; return the exit status."""
    settings = parse(
        ProbeSettings,
        argv,
        verb="accelerate launch launcher/probe.py",
        description=__doc__ or "",
        next_line="accelerate launch launcher/probe.py --model random --like DIR --data.train DIR --data.test DIR "
        "--out DIR",
    )

    with joined_ranks(timeout_s=settings.timeout_s) as ranks:
        run(settings, ranks)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
