"""An error on one rank of two: both end with documented statuses, the reason is printed once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.toy import free_port

from colorgan.errors import ExitStatus
from colorgan.runs.log import read_log

SCRIPT = Path(__file__).parents[2] / "helpers" / "failing_rank.py"
# All ranks end within 10 s of the error on an idle machine; starting takes as long as it takes.
LIMIT_S = 240


def run_ranks(
    folder: Path, rank: int, error: str, where: str, **settings: str
) -> list[tuple[int, str]]:
    """Run two ranks, the given one failing; return status and output of each."""
    port = str(free_port())
    processes = []

    for number in (0, 1):
        environment = {
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
            "PYTHONWARNINGS": "ignore",
            **settings,
        }
        command = [sys.executable, str(SCRIPT), str(folder), str(rank), error, where]
        processes.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
        )

    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()

    return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize(
    ("rank", "error", "where", "status", "reason"),
    [
        (1, "memory", "step", ExitStatus.MISTAKE, "OutOfMemoryError: CUDA out of memory."),
        (0, "shard", "step", ExitStatus.MISTAKE, "ShardError: coco-000012.tar: sample 17 cannot"),
        (1, "bug", "validation", ExitStatus.FAULT, "ZeroDivisionError: a fault of the program"),
    ],
)
def test_all_ranks_end_and_the_reason_is_printed_once(
    tmp_path: Path, rank: int, error: str, where: str, status: ExitStatus, reason: str
) -> None:
    ends = run_ranks(tmp_path, rank, error, where)
    ours, other = ends[rank], ends[1 - rank]
    assert ours[0] == status, ours[1]
    assert other[0] == ExitStatus.LOST_RANK, other[1]
    assert ours[1].count(reason) == 1, ours[1]
    assert f"rank {rank} (process " in other[1], other[1]
    assert "rerunning the command resumes from the last checkpoint" in other[1]

    # Rank 0 logs what it knows: its own error, or the rank that was lost.
    events = [line for line in read_log(tmp_path / "run") if line["kind"] == "event"]
    logged = f"rank {rank} (process " if rank else reason.partition(": ")[2]
    assert logged in events[-1]["text"]


@pytest.mark.parametrize(
    "profile",
    [{}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}],
    ids=["ddp", "zero1"],
)
def test_a_rank_that_ends_before_the_run_is_not_waited_for(
    tmp_path: Path, profile: dict[str, str]
) -> None:
    # DeepSpeed makes groups of its own, for which torch waits half an hour unless it is told.
    ours, other = run_ranks(tmp_path, 1, "bug", "start", **profile)[::-1]
    assert ours[0] == 9
    assert other[0] == ExitStatus.LOST_RANK, other[1]
    assert "LostRankError: another rank ended or cannot be reached: " in other[1], other[1]
    assert "Traceback" not in other[1]
