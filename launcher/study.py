"""Does pretraining help, by how much, and is it real? Pretrain, transfer, compare, report.

Runs the other commands one after the other: pack -> pretrain -> consolidate -> fine-tune each arm with
each seed by each protocol -> the table with intervals -> report. Arms are `scratch` and every
generator. Rerunning the command resumes it. Without data it studies the built-in sample.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from colorgan.study.runner import Runner
from colorgan.study.study import StudySettings, check, run_study

LAUNCHER = Path(__file__).resolve().parent
VERB = "python launcher/study.py"


def main(argv: list[str]) -> int:
    """Run what is missing; return the exit status."""
    settings = parse(
        StudySettings,
        argv,
        command=VERB,
        description=__doc__ or "",
        next_line="open OUT/report/report.html in a browser",
        recipes=LAUNCHER / "configs",
    )
    check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(settings.out / "steps", LAUNCHER, settings.jobs, shlex.split(settings.launch))
    with runner:
        run_study(settings, runner)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
