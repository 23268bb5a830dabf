"""Ranks of srun, DeepSpeed and others get the same variables and end with their launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colorgan.launchers import adopt_launcher, first_node, launchers_above

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("rack2-gpu[7].cluster", "rack2-gpu7.cluster"),
        ("", ""),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_what_srun_starts_are_ranks() -> None:
    env = {
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_STEP_NODELIST": "node[1-3]",
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "0",
    }
    adopt_launcher(env)
    assert {name: env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
    }
    assert env["LOCAL_WORLD_SIZE"] == "2"
    assert 20_000 <= int(env["MASTER_PORT"]) < 30_000

    other = {**env, "SLURM_STEP_ID": "1"}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        del other[name]
    adopt_launcher(other)
    assert other["MASTER_PORT"] != env["MASTER_PORT"]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # the batch script
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "2", "RANK": "3", "WORLD_SIZE": "8"},  # torchrun below srun
    ],
)
def test_other_starts_are_left_alone(env: dict[str, str]) -> None:
    before = dict(env)
    adopt_launcher(env)
    assert env == before


def test_deepspeeds_launcher_names_the_ranks_of_a_machine_differently() -> None:
    env = {"RANK": "1", "LOCAL_SIZE": "2", "WORLD_SIZE": "4"}
    adopt_launcher(env)
    assert env["LOCAL_WORLD_SIZE"] == "2"


def test_the_tests_have_no_launcher_above() -> None:
    assert launchers_above() == []


# A process with a child, as a launcher of one rank; killed, it takes nothing with it by itself.
LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, sys.argv[1]]).wait()
"""
RANK = """
import signal, sys, time
from colorgan.launchers import end_with_launchers, launchers_above, saving
from colorgan import launchers
launchers.STOP_WITHIN_S, launchers.SAVE_WITHIN_S = 1.0, 3.0
end_with_launchers()
if "{handles}":
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print(len(launchers_above()), flush=True)
if "{saves}":
    with saving():
        time.sleep(2)
        print("saved", flush=True)
        sys.stdout.flush()
        import os; os._exit(0)
while True:
    time.sleep(0.1)
"""


def run_until_end(tmp_path: Path, name: str, **how: str) -> str:
    """Start a rank below a launcher of that name, kill the launcher, return the rank's output."""
    (tmp_path / name).write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK.format(**{"handles": "", "saves": "", **how}))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / name), str(tmp_path / "rank.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == "1\n"

    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest = process.stdout.read()  # ends when the rank has ended
    process.stdout.close()
    return rest


@pytest.mark.parametrize("name", ["accelerate", "torchrun", "deepspeed", "study.py"])
def test_a_rank_ends_with_its_launcher(tmp_path: Path, name: str) -> None:
    assert run_until_end(tmp_path, name) == ""


def test_a_rank_is_asked_to_stop_and_then_ended(tmp_path: Path) -> None:
    assert run_until_end(tmp_path, "torchrun", handles="yes") == "asked\n"


def test_a_checkpoint_is_finished_first(tmp_path: Path) -> None:
    assert run_until_end(tmp_path, "torchrun", handles="yes", saves="yes") == "asked\nsaved\n"


FAILING_LAUNCHER = """
import subprocess, sys
subprocess.run([sys.executable, sys.argv[1]])
print("Traceback of the launcher", file=sys.stderr)
"""
FAILING_RANK = """
from colorgan.config.command import run_command
from colorgan.errors import UsageError

def main(words):
    raise UsageError("the reason")

run_command(main)
"""


@pytest.mark.parametrize("where", ["pipe", "file"])
def test_the_reason_comes_last_where_it_is_read_to_the_end(tmp_path: Path, where: str) -> None:
    (tmp_path / "torchrun").write_text(FAILING_LAUNCHER)
    (tmp_path / "rank.py").write_text(FAILING_RANK)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, str(tmp_path / "torchrun"), str(tmp_path / "rank.py")]
    with (tmp_path / "errors").open("w") as errors:
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if where == "pipe" else errors,
            text=True,
            timeout=60,
            check=True,
            env={**env, "PYTHONPATH": str(ROOT)},
        )

    lines = (done.stderr or (tmp_path / "errors").read_text()).splitlines()
    expected = ["Traceback of the launcher", "UsageError: the reason"]
    assert lines == (expected if where == "pipe" else expected[::-1])
