"""Does pretraining help, by how much, and is it real? Pretrain, transfer, compare, report.

Runs the other commands: pack -> pretrain -> consolidate -> fine-tune each arm with each seed by
each protocol -> the table with intervals -> report. Arms are `scratch` and every generator.
Rerunning the command resumes it. Without data it studies the built-in sample. --dry_run true prints
the steps with their cost and what differences the study could show; --list_steps true prints the
steps as JSON for a scheduler.
"""

from __future__ import annotations

from pathlib import Path

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from colorgan.study.settings import StudySettings

LAUNCHER = Path(__file__).resolve().parent


def main(argv: list[str]) -> int:
    """Run the steps that are not complete; return the exit status."""
    settings = parse(
        StudySettings,
        argv,
        command=command_text("study"),
        description=__doc__ or "",
        next_line="open OUT/report/report.html in a browser",
        recipes=LAUNCHER / "configs",
    )

    # Torch is imported after the settings have been checked.
    from colorgan.study.study import run_study

    # The folder of the scripts: steps are commands in processes of their own.
    run_study(settings, LAUNCHER)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
