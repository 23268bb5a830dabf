"""The steps of a study, run: each a verb in a process of its own, told by a recipe file, done once.

    <folder>/<step>.yaml    what the step was told; <step>.done when it has ended well
    <folder>/<step>.log     all it said

launcher/study.py says which steps there are (colorgan/study/trials.py makes them).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import torch
import yaml

from colorgan.errors import (
    ColorganError,
    ExitStatus,
    NotFiniteError,
    OtherRecipeError,
    OtherWeightsError,
)
from colorgan.study.trials import Step

TRAINING = ("pretrain", "finetune", "probe")
TAIL_LINES = 12
MAX_LOG_BYTES = 4096
LEFT_BEHIND_S = 120.0  # what a stopped launcher leaves behind may still save for so long
DIVERGED = NotFiniteError.__name__  # also where a launcher has made another status of it


class StepError(ColorganError):
    """A step has failed; its own words were shown, and its status becomes ours."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = self.exit_status = status


class Runner:
    """Runs steps, some side by side, each in a process of its own with its share of the machine.

    A step is done when its file is there and it was told the same as now. SIGTERM and Ctrl-C go on to what runs,
    which saves and stops; the study then ends with status 75.

    Args:
        folder: where recipes, outputs and marks of the steps are kept.
        launcher: the folder of the verbs.
        jobs: steps side by side.
        launch: words that start training; none: this Python, one process.
    """

    def __init__(self, folder: Path, launcher: Path, jobs: int, launch: Sequence[str]) -> None:
        self._folder, self.launcher, self._jobs, self._launch = folder, launcher, jobs, launch
        self._places: queue.Queue[int] = queue.Queue()
        for place in range(jobs):
            self._places.put(place)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = self._failed = False
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Runner:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
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
        """Run those that are not done, and tell of each.

        Raises:
            StepError: the first that failed; those side by side with it have ended, no other has begun.
        """
        self._failed = False
        missing = [step for step in steps if not self._is_done(step)]
        if not missing:
            return
        with ThreadPoolExecutor(self._jobs) as pool:
            jobs = [
                pool.submit(self._run, step, f"{n}/{len(missing)}")
                for n, step in enumerate(missing, 1)
            ]
        failed = [error for job in jobs if (error := job.exception()) is not None]
        if failed:
            raise failed[0]
        if self._stopped:
            raise StepError("stopped; the same command goes on from there", ExitStatus.STOPPED)

    def _recipe_path(self, step: Step) -> Path:
        return self._folder / f"{step.name.replace('/', '-').replace(' ', '-')}.yaml"

    def _is_done(self, step: Step) -> bool:
        path = self._recipe_path(step)
        told = path.with_suffix(".done")
        return step.done.exists() and told.exists() and told.read_text() == recipe_text(step)

    def _run(self, step: Step, count: str) -> None:
        if self._stopped or self._failed:
            return
        path, start, place = self._recipe_path(step), time.monotonic(), self._places.get()
        path.write_text(recipe_text(step))
        launch = self._launch if step.verb in TRAINING else ()
        command = [
            *(launch or [sys.executable]),
            str(self.launcher / f"{step.verb}.py"),
            "--config",
            str(path),
        ]
        log = path.with_suffix(".log")
        try:
            with log.open("wb") as output:
                status = self._wait(command, output, place)
        finally:
            self._places.put(place)
        lines = last_lines(log)
        if status == ExitStatus.STOPPED or self._stopped:
            self._failed = True
            raise StepError(
                f"{step.name}: stopped; the same command goes on from there", ExitStatus.STOPPED
            )
        if step.may_diverge and (
            status == NotFiniteError.exit_status or DIVERGED in " ".join(lines)
        ):
            print(f"[{count}] {step.name}: diverged, no score", flush=True)
            return
        if status != 0 or not step.done.exists():
            self._failed = True
            tail = "\n  ".join(lines[-TAIL_LINES:])
            run = step.recipe.get("run")
            if status == ExitStatus.OTHER_RECIPE or OtherRecipeError.__name__ in tail:
                tail += f"\n  (the study was told otherwise before: give another --out, or remove {run})"
            if status == ExitStatus.OTHER_WEIGHTS or OtherWeightsError.__name__ in tail:
                tail += f"\n  (a generator was replaced: give another --out, or remove {run} and its other seeds')"
            raise StepError(
                f"{step.name} ended with status {status} (its whole output: {log}):\n  {tail}",
                status or 1,
            )
        path.rename(path.with_suffix(".done"))
        told = [line for line in lines if not line.startswith(("Next:", "next:"))]
        print(
            f"[{count}] {step.name} ({time.monotonic() - start:.0f} s): {told[-1] if told else 'done'}",
            flush=True,
        )

    def _wait(self, command: Sequence[str], output: BinaryIO, place: int) -> int:
        """Start a step in a session of its own: what a launcher starts is stopped with it. Return its status."""
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=self._environment(place),
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopped:  # the signal came while it was started
            _terminate(process)
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, self._cores(place))
        status = process.wait()
        self._running.discard(process)
        until = time.monotonic() + LEFT_BEHIND_S
        while self._stopped and _lives(process.pid) and time.monotonic() < until:
            time.sleep(0.1)  # a launcher may end before the run that it started has saved
        return status

    def _cores(self, place: int) -> set[int]:
        """This place's share of the cores; with more places than cores all of them."""
        cores = sorted(os.sched_getaffinity(0))
        return set(cores[place :: self._jobs] if len(cores) >= self._jobs else cores)

    def _environment(self, place: int) -> dict[str, str]:
        """With several places each sees its share of the GPUs only."""
        if self._jobs == 1 or not torch.cuda.is_available():
            return dict(os.environ)
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(torch.cuda.device_count()))
        )
        gpus = names.split(",")
        mine = gpus[place :: self._jobs] if len(gpus) >= self._jobs else [gpus[place % len(gpus)]]
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(mine)}


def _terminate(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def recipe_text(step: Step) -> str:
    """Return what a step is told, as YAML; what it reads, as comments."""
    read = "".join(f"# {name}: {digest}\n" for name, digest in step.inputs.items())
    return read + yaml.safe_dump(dict(step.recipe), sort_keys=False)


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a step's output that say something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
        return [
            line.strip()
            for line in file.read().decode(errors="replace").splitlines()
            if line.strip()
        ]
