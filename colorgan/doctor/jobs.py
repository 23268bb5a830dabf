"""Starts the doctor's jobs as processes, one per rank, and collects what they print."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from colorgan.errors import ExitStatus

# What a launcher or an outer run has set and a job must not inherit.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
GRACE_S = 3.0  # for the other ranks, once one has failed


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        results: The JSON objects that the ranks printed, rank 0's first.
        statuses: Exit status per rank; None for a rank that did not end in time. Once a rank has
            failed, the others are killed.
        ended: When the last rank ended, in seconds since the epoch.
        errors: What each rank wrote to standard error.
    """

    results: list[dict[str, Any]]
    statuses: tuple[int | None, ...]
    ended: float
    errors: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether any rank did not end with status 0; one that was killed has none."""
        return any(status != 0 for status in self.statuses)

    @property
    def reason(self) -> str:
        """The last line that a failed rank wrote, or how it ended."""
        ranks = zip(range(len(self.statuses)), self.statuses, self.errors, strict=True)
        # Last those that ended because another one had failed.
        after = (-signal.SIGKILL, ExitStatus.LOST_RANK)
        for rank, status, text in sorted(ranks, key=lambda each: each[1] in after):
            if status is None:
                return f"rank {rank} did not end within the time limit"
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if status and lines:
                return lines[-1][:300]
            if status:
                return f"rank {rank} ended with status {status} and no message"
        return ""


def run_job(
    name: str,
    settings: dict[str, Any],
    *,
    world_size: int = 1,
    on_cpu: bool,
    timeout_s: float,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> JobResult:
    """Run a job of `colorgan.doctor.worker` on `world_size` new processes and wait for all.

    Args:
        name: A key of the worker's JOBS.
        settings: The job's keyword arguments.
        world_size: Number of ranks, all on this machine.
        on_cpu: Keep to the CPU although there may be a GPU.
        timeout_s: Seconds after which the ranks that are left are killed.
        environment: Further variables, as a launch profile sets them.
    """
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "colorgan.doctor.worker", name, json.dumps(settings)],
            env={**_environment(rank, world_size, port, on_cpu), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # One port for all ranks of a job.
        for port in [_free_port()]
        for rank in range(world_size)
    ]

    with ThreadPoolExecutor(world_size) as readers:
        reading = [readers.submit(process.communicate) for process in processes]
        is_late = _wait_for(processes, began + timeout_s)
        late = [each for each in processes if is_late and each.poll() is None]
        for process in processes:
            # SIGKILL: a rank that hangs in a driver does not hear SIGTERM.
            process.kill()
        outputs = [each.result() for each in reading]

    return JobResult(
        results=_results("".join(output for output, _ in outputs)),
        statuses=tuple(None if each in late else each.returncode for each in processes),
        ended=time.time(),
        errors=tuple(error for _, error in outputs),
    )


def _wait_for(processes: Sequence[subprocess.Popen[str]], until: float) -> bool:
    """Wait for all to end, or a little for the others once one has failed.

    A launcher ends the others, too: a GPU waits in a collective call for a minute.

    Returns:
        Whether the time was over before.
    """
    failed_at = math.inf
    while (now := time.monotonic()) < until:
        statuses = [process.poll() for process in processes]
        if None not in statuses or now > failed_at + GRACE_S:
            return False
        if any(statuses):
            failed_at = min(failed_at, now)
        time.sleep(0.05)
    return True


def _results(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines; libraries may print others."""
    results = []
    for line in text.splitlines():
        if line.startswith("{"):
            results.append(json.loads(line))
    return results


def _environment(rank: int, world_size: int, port: int, on_cpu: bool) -> dict[str, str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_VARIABLES)
    }
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    if world_size > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        # Free now; that another process takes it in between is unlikely and shows as an error.
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
