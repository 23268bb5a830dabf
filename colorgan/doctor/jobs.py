"""Starts the doctor's jobs as processes, one per rank, and collects what they print."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# What a launcher or an outer run has set and a job must not inherit.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        results: The JSON objects that the ranks printed, rank 0's first.
        statuses: Exit status per rank; None for a rank that had to be killed.
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
        for rank, (status, text) in enumerate(zip(self.statuses, self.errors, strict=True)):
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

    outputs, statuses = [], []
    for process in processes:
        # One limit for all ranks together, from their start.
        left = max(0.1, timeout_s - (time.monotonic() - began))
        try:
            outputs.append(process.communicate(timeout=left))
            statuses.append(process.returncode)
        except subprocess.TimeoutExpired:
            # SIGKILL: a rank that hangs in a driver does not hear SIGTERM.
            process.kill()
            outputs.append(process.communicate())
            statuses.append(None)

    return JobResult(
        results=_results("".join(output for output, _ in outputs)),
        statuses=tuple(statuses),
        ended=time.time(),
        errors=tuple(error for _, error in outputs),
    )


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
