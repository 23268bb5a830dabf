"""A launcher that is stopped or killed leaves no rank behind, and what could be saved is saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import LAUNCHER, PROJECT, TINY

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "accelerate, one rank": [BIN / "accelerate", "launch", "--cpu"],
    "torchrun, two ranks": [BIN / "torchrun", "--standalone", "--nproc-per-node", "2"],
}


def wait_for(done: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def processes_of(run: Path) -> list[int]:
    """Return the living processes whose command line names the run."""
    found = []

    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if os.fsencode(run) in words and state not in "ZX":
            found.append(int(folder.name))

    return found


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("accelerate, one rank", signal.SIGKILL),
        ("accelerate, one rank", signal.SIGHUP),
        ("torchrun, two ranks", signal.SIGKILL),
        ("torchrun, two ranks", signal.SIGTERM),
    ],
)
def test_no_rank_outlives_its_launcher(
    tmp_path: Path, packed: dict[str, Path], launcher: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    words = ["--data.train", packed["train"], "--run_dir", run, "--images", 1_000_000, *TINY]
    # Under nohup SIGHUP is ignored, also by what these tests start.
    untouched = ["env", "--default-signal=HUP"]
    command = [*untouched, *LAUNCHERS[launcher], LAUNCHER / "pretrain.py", *words]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": "-1"},
            start_new_session=True,
        )

    log = run / "log.jsonl"
    wait_for(
        lambda: log.exists() and '"train"' in log.read_text(),
        "the first steps",
    )
    process.send_signal(number)
    process.wait(timeout=60)

    wait_for(lambda: not processes_of(run), "the ranks to end", timeout_s=60)
    assert list((run / "checkpoints").glob("images-*")), (tmp_path / "output").read_text()
