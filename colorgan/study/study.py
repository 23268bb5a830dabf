"""The work of launcher/study.py: plan the steps, then run, list or price them."""

from __future__ import annotations

import shlex
from pathlib import Path

from colorgan.files import owned_folder
from colorgan.study.checks import STEPS, check, check_folder
from colorgan.study.costs import cost_text, read_costs
from colorgan.study.plan import Plan
from colorgan.study.power import power_text
from colorgan.study.runner import Runner
from colorgan.study.settings import StudySettings
from colorgan.study.steps import find_step, list_steps


def run_study(settings: StudySettings, launcher: Path) -> None:
    """Run every step of a study; complete ones cost nothing.

    Raises:
        UsageError: a mistake in the settings.
        StepError: a step failed.
    """
    # Mistakes first, then the folder: a wrong setting leaves nothing behind.
    check(settings)
    check_folder(settings.out)
    plan = Plan(settings, launcher)
    folder = settings.out / STEPS
    steps = plan.steps
    if settings.list_steps:
        print(list_steps(steps, folder))
        return
    if settings.dry_run:
        print(cost_text(steps, folder, settings.expected_core_minutes))
        print(power_text(plan))
        return

    for trial in plan.trials:
        # Said at the start: another split means other numbers than in papers.
        if trial.split is not trial.protocol.data[0]:
            print(f"{trial.protocol.data[0].title}: not on disk with its labels", flush=True)
    if settings.roots.voc is None:
        print(
            "No --roots.voc: studying the built-in sample (drawn shapes, no benchmark).", flush=True
        )

    # A single step is a scheduler's, which has given it all the cores and GPUs that it is to have.
    num_jobs = 1 if settings.step else settings.jobs
    runner = Runner(folder, launcher, num_jobs, shlex.split(settings.launch))
    with runner:
        if settings.step:
            runner.run_one(find_step(steps, settings.step), steps)
            return

        # Two studies in one folder would run each step twice. A single step is the scheduler's to
        # order.
        with owned_folder(folder):
            runner.run(steps)
    print(f"{sum(read_costs(folder).values()):.1f} core-minutes in all")
    print(f"Next: open {settings.out / 'report' / 'report.html'} in a browser")
