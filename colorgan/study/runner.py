"""Run a study's steps: each is a command in its own process, configured by YAML, and runs once.

<folder>/<step>.yaml        its recipe; renamed to .done when it has succeeded
<folder>/<step>.diverged    its recipe, if it may diverge and did
<folder>/<step>.log         its output
<folder>/<step>.cost.json   its cost (colorgan/study/costs.py)
<folder>/.lock              held by the study that runs here: process and host
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from colorgan.errors import ColorganError, ExitStatus, UsageError
from colorgan.study.costs import write_cost
from colorgan.study.steps import IN_PROCESS, TRAINING, Step

TAIL_LINES = 12
MAX_LOG_BYTES = 4096
LEFT_BEHIND_S = 120.0  # processes that a stopped launcher leaves behind may save for so long
RESUMES = "rerunning the command resumes it"


class StepError(ColorganError):
    """A step has failed: the end of its output as message, its exit status as ours."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = self.exit_status = status


class Runner:
    """Run steps, some side by side, each in its own process with its share of the machine.

    SIGTERM, SIGHUP and Ctrl-C are passed on to the running steps, which save and stop; the study
    then ends with status 75. If the study itself is killed, the kernel sends its steps SIGTERM.

    Args:
        folder: for recipes, output and marks of the steps.
        launcher: the folder of the commands.
        jobs: steps side by side.
        launch: words that start training; none: this Python, one process.
    """

    def __init__(self, folder: Path, launcher: Path, jobs: int, launch: Sequence[str]) -> None:
        self.launcher = launcher
        self._folder = folder
        self._jobs = jobs
        self._launch = launch
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

        # A place is a share of cores and GPUs; a step holds one while it runs.
        self._places: queue.Queue[int] = queue.Queue()
        for place in range(jobs):
            self._places.put(place)
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Runner:
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR2,
        ):
            # Not StopSignals: a study does not save by itself, its steps do.
            signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._running):
            _terminate(process)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopped = True
        for process in list(self._running):
            _terminate(process)

    def run(self, steps: Sequence[Step]) -> None:
        """Run the steps that are not complete, parents before children, and print a line per step.

        Raises:
            StepError: the first failure; steps side by side with it have ended, no other has begun.
            UsageError: a recipe cannot be made from the results so far.
        """
        waiting = list(steps)
        absent = {step.name for step in steps}
        running: dict[Future[None], Step] = {}
        failures: list[BaseException] = []
        with ThreadPoolExecutor(self._jobs) as pool:
            while True:
                ready = [each for each in waiting if absent.isdisjoint(each.parents)]
                # After a failure nothing begins, but what runs may finish: hours of work are kept.
                free = 0 if failures or self._stopped else self._jobs - len(running)
                for step in ready[:free]:
                    waiting.remove(step)
                    if step.has_ended(self._folder):
                        absent.discard(step.name)
                    else:
                        count = f"{len(steps) - len(waiting)}/{len(steps)}"
                        running[pool.submit(self._run, step, count)] = step

                if ready[:free] and len(running) < self._jobs:
                    continue  # complete steps may have made others ready
                if not running:
                    break
                failures += _collect(running, absent)

        if failures:
            raise failures[0]
        if self._stopped:
            raise StepError(f"stopped; {RESUMES}", ExitStatus.STOPPED)

    def run_one(self, step: Step, steps: Sequence[Step]) -> None:
        """Run one step whose parents are complete, for a scheduler that keeps the order itself.

        Raises:
            UsageError: a parent is not complete.
            StepError: it failed.
        """
        absent = []
        for parent in steps:
            ended = parent.done.exists() or parent.has_diverged(self._folder)
            # The output alone: a scheduler may have made it on another machine, where no mark is.
            if parent.name in step.parents and not ended:
                absent.append(parent.name)
        if absent:
            raise UsageError(f"--step {step.name}: {', '.join(absent)} must be complete first")
        if not step.has_ended(self._folder):
            self._run(step, "1/1")

    def _run(self, step: Step, count: str) -> None:
        begin = time.monotonic()
        if step.command == IN_PROCESS:
            assert step.action is not None
            step.action()
            print(f"[{count}] {step.name} ({time.monotonic() - begin:.0f} s)", flush=True)
            return

        place = self._places.get()
        text = step.text(self._folder)
        path = self._folder / f"{step.file_name}.yaml"
        # Written before the start, renamed at the end: a killed step leaves the recipe that it had.
        path.write_text(text)
        if step.always:
            # Or the output of the last time would be taken for this one's.
            step.done.unlink(missing_ok=True)
        log = path.with_suffix(".log")
        try:
            with log.open("wb") as output:
                status = self._wait(step, path, output, place)
        finally:
            self._places.put(place)

        lines = last_lines(log)
        # Before the check of its output: a stopped step may have written it in part.
        if status == ExitStatus.STOPPED or self._stopped:
            raise StepError(f"{step.name}: stopped; {RESUMES}", ExitStatus.STOPPED)
        if step.may_diverge and status == ExitStatus.NOT_FINITE:
            path.with_suffix(".diverged").write_text(text)
            print(f"[{count}] {step.name}: diverged, no score", flush=True)
            return
        if status != 0 or not step.done.exists():
            raise _failure(step, status, log, lines)

        # Only now: a crash before this line repeats the step, which costs little.
        path.rename(path.with_suffix(".done"))
        shown = [line for line in lines if not line.startswith(("Next:", "next:", "or:"))]
        print(
            f"[{count}] {step.name} ({time.monotonic() - begin:.0f} s): "
            f"{shown[-1] if shown else 'done'}",
            flush=True,
        )

    def _wait(self, step: Step, recipe: Path, output: BinaryIO, place: int) -> int:
        """Start a step in its own session, so that its group can be stopped; return its status."""
        launch = self._launch if step.command in TRAINING and self._launch else [sys.executable]
        command = [
            *launch,
            str(self.launcher / f"{step.command}.py"),
            "--config",
            str(recipe),
        ]
        begin = time.monotonic()
        # Launchers end with 1 whatever their ranks end with.
        statuses = recipe.with_suffix(".statuses")
        shutil.rmtree(statuses, ignore_errors=True)
        statuses.mkdir()
        process = subprocess.Popen(
            [*_ends_with_us(), *command],
            stdout=output,
            stderr=output,
            env={**self._environment(place), "COLORGAN_STATUS_DIR": str(statuses)},
            # A group of its own: Ctrl-C in a terminal must not reach it twice.
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopped:  # the signal arrived while the step was started
            _terminate(process)
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, self._cores(place))

        status, core_seconds = _status_and_cost(process)
        self._running.discard(process)
        write_cost(self._folder, step, time.monotonic() - begin, core_seconds)

        # A launcher may end before the run that it started has saved.
        until = time.monotonic() + LEFT_BEHIND_S
        while self._stopped and _lives(process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        if status != ExitStatus.DONE:
            status = _status_of_ranks(statuses, status)
        shutil.rmtree(statuses, ignore_errors=True)
        return status

    def _cores(self, place: int) -> set[int]:
        """Return this place's share of the cores; all, if there are more places than cores."""
        cores = sorted(os.sched_getaffinity(0))
        return set(cores[place :: self._jobs] if len(cores) >= self._jobs else cores)

    def _environment(self, place: int) -> dict[str, str]:
        """Return the environment; with several places each sees only its share of the GPUs."""
        if self._jobs == 1:
            return dict(os.environ)

        # Here: a study of one place starts without the seconds that torch takes.
        import torch

        if not torch.cuda.is_available():
            return dict(os.environ)

        every = ",".join(map(str, range(torch.cuda.device_count())))
        # Of those that this process may use: SLURM gives a part of a node's.
        gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or every).split(",")
        mine = gpus[place :: self._jobs] if len(gpus) >= self._jobs else [gpus[place % len(gpus)]]
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(mine)}


def _collect(running: dict[Future[None], Step], absent: set[str]) -> list[BaseException]:
    """Wait until a step ends; remove it from `running`, from `absent` if it succeeded."""
    failures = []
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        step = running.pop(future)
        error = future.exception()
        if error is None:
            absent.discard(step.name)
        else:
            failures.append(error)
    return failures


def _ends_with_us() -> list[str]:
    """Return the words that have the kernel stop a step when the study is killed.

    The signal is bound to the thread that starts the process, and the threads of the pool live as
    long as their steps.
    """
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "TERM"] if program else []


def _status_and_cost(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for a process; return its exit status and the core-seconds of it and its children."""
    _, raw, usage = os.wait4(process.pid, 0)
    # wait4 is the only call that gives the times of all children; Popen must not wait again.
    process.returncode = os.waitstatus_to_exitcode(raw)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _status_of_ranks(folder: Path, status: int) -> int:
    """Return the status of the first rank that failed by itself; launchers make status 1 of it."""
    found = []
    for path in sorted(folder.glob("rank-*")):
        text = path.read_text().strip()
        if text.isdigit() and int(text) != ExitStatus.DONE:
            found.append(int(text))

    # A rank that lost its peer is a consequence, not the cause.
    own = [each for each in found if each != ExitStatus.LOST_RANK]
    return next(iter([*own, *found]), status)


def _failure(step: Step, status: int, log: Path, lines: Sequence[str]) -> StepError:
    tail = "\n  ".join(lines[-TAIL_LINES:])
    run = step.recipe().get("run")
    if status == ExitStatus.OTHER_RECIPE:
        tail += f"\n  (the study had other settings before: give another --out, or remove {run})"
    if status == ExitStatus.OTHER_WEIGHTS:
        tail += (
            f"\n  (a generator was replaced: give another --out, or remove {run} and the runs with "
            "other seeds)"
        )
    return StepError(
        f"{step.name} ended with status {status} (its whole output: {log}):\n  {tail}", status or 1
    )


def _terminate(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        # The group: launchers do not pass every signal on to their ranks.
        os.killpg(process.pid, signal.SIGTERM)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def last_lines(log: Path) -> list[str]:
    """Return the last non-empty lines of a step's output."""
    with log.open("rb") as file:
        # The end: a log of days is hundreds of megabytes.
        file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
