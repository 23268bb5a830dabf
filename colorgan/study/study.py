"""The work of launcher/study.py: plan the steps, then run, list or price them."""

from __future__ import annotations

import shlex
from pathlib import Path

from colorgan.errors import UsageError
from colorgan.study.costs import cost_text, read_costs
from colorgan.study.plan import Plan
from colorgan.study.power import power_text
from colorgan.study.record import STUDY
from colorgan.study.runner import Runner
from colorgan.study.settings import StudySettings, check
from colorgan.study.steps import find_step, list_steps

STEPS = "steps"


def run_study(settings: StudySettings, launcher: Path) -> None:
    """Run every step of a study; complete ones cost nothing.

    Raises:
        UsageError: a mistake in the settings.
        StepError: a step failed.
    """
    check(settings)
    check_folder(settings.out)
    plan = Plan(settings, launcher)
    folder = settings.out / STEPS
    steps = plan.steps
    if settings.list_steps:
        print(list_steps(steps, folder, launcher))
        return
    if settings.dry_run:
        print(cost_text(steps, folder, settings.expected_core_minutes))
        print(power_text(plan))
        return

    for trial in plan.trials:
        if trial.split is not trial.protocol.data[0]:
            print(f"{trial.protocol.data[0].title}: not on disk with its labels", flush=True)
    if settings.roots.voc is None:
        print(
            "No --roots.voc: studying the built-in sample (drawn shapes, no benchmark).", flush=True
        )

    runner = Runner(folder, launcher, settings.jobs, shlex.split(settings.launch))
    with runner:
        if settings.step:
            runner.run_one(find_step(steps, settings.step), steps)
            return
        runner.lock()
        runner.run(steps)
    print(f"{sum(read_costs(folder).values()):.1f} core-minutes in all")
    print(f"Next: open {settings.out / 'report' / 'report.html'} in a browser")


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something other than a study.

    Raises:
        UsageError: it is a file, a run, or has other contents.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")

    names = {path.name for path in out.iterdir()}
    if names and not names & {STEPS, STUDY}:
        raise UsageError(
            f"--out {out} holds something other than a study ({', '.join(sorted(names)[:3])}): give "
            "another folder"
        )
