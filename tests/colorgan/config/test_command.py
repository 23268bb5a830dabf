"""How a command ends: one sentence, the exit status, and nothing that waits for other ranks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from colorgan.config import command
from colorgan.config.command import run_command
from colorgan.errors import CheckpointError, ExitStatus, OtherRecipeError, OtherWeightsError

ROOT = Path(__file__).parents[3]


class OtherError(Exception):
    """An error of another package."""


def ending(main: Callable[[list[str]], int | None], *errors: type[Exception]) -> object:
    with pytest.raises(SystemExit) as caught:
        run_command(main, *errors)
    return caught.value.code


def failing(error: BaseException) -> Callable[[list[str]], None]:
    def main(words: list[str]) -> None:
        raise error

    return main


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")  # which `run_command` changes


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (CheckpointError("it is damaged."), 2, "CheckpointError: it is damaged."),
        (OtherRecipeError("undo"), 78, "OtherRecipeError: undo"),
        (OtherWeightsError("others"), 66, "OtherWeightsError: others"),
        (OtherError("no such class."), 2, "OtherError: no such class."),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out"),
            2,
            "PermissionError: /out: Permission denied.",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "OSError: No space left on device."),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(failing(error), OtherError) == status
    assert capsys.readouterr().err == sentence + "\n"


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError(), ConnectionResetError(errno.ECONNRESET, "reset"), OtherError()]
)
def test_our_own_faults_keep_their_traceback(fault: Exception) -> None:
    with pytest.raises(type(fault)):
        run_command(failing(fault))


def test_words_and_status_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--a", "1"])
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # a notebook's
    assert ending(lambda words: None) == 0
    assert os.environ["MPLBACKEND"] == "Agg"
    refused = ExitStatus.NOT_FINITE
    assert ending(lambda words: refused if words == ["--a", "1"] else 0) == refused


def test_the_status_is_left_where_the_caller_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLORGAN_STATUS_DIR", str(tmp_path))
    ending(failing(OtherRecipeError("undo")))
    assert (tmp_path / "rank-0").read_text() == "78\n"


def test_another_rank_waits_before_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setattr(command.time, "sleep", waited.append)

    assert ending(failing(CheckpointError("only here."))) == 2
    assert waited == [3.0]
    assert capsys.readouterr().err == "[rank 5] CheckpointError: only here.\n"


SCRIPT = """
import atexit, os, signal, sys, time
from colorgan.config.command import run_command
from colorgan.errors import CheckpointError

def main(words):
    if words == ["wait"]:
        print("ready", flush=True)
        time.sleep(60)
    if words == ["fail"]:
        # As leaving a process group does while the other ranks are in a collective call.
        atexit.register(time.sleep, 60)
        raise CheckpointError("only here.")
    if words == ["fault"]:
        atexit.register(time.sleep, 60)
        raise ZeroDivisionError
    if words == ["stop"]:
        # As SLURM's script asks again while the interpreter ends.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            atexit.register(os.kill, os.getpid(), number)
        return 75
    for _ in range(20_000):
        print("x" * 50)

run_command(main)
"""


def start(tmp_path: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    (tmp_path / "command.py").write_text(SCRIPT)

    # What a shell starts in the background ignores Ctrl-C, and so would its children.
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, str(tmp_path / "command.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


@pytest.mark.parametrize(
    ("words", "status", "error"), [(["wait"], 130, "Interrupted.\n"), ([], 141, "")]
)
def test_ctrl_c_and_a_closed_pipe(
    tmp_path: Path, words: list[str], status: int, error: str
) -> None:
    process = start(tmp_path, *words)
    assert process.stdout and process.stderr

    process.stdout.readline()
    if words:
        process.send_signal(signal.SIGINT)
    process.stdout.close()

    assert (process.wait(timeout=30), process.stderr.read()) == (status, error)
    process.stderr.close()


def test_a_signal_at_the_very_end_does_not_replace_the_status(tmp_path: Path) -> None:
    process = start(tmp_path, "stop")
    process.communicate(timeout=30)
    assert process.returncode == ExitStatus.STOPPED


@pytest.mark.parametrize(
    ("word", "status", "last"),
    [("fail", 2, "CheckpointError: only here."), ("fault", 1, "ZeroDivisionError")],
)
def test_a_failing_rank_does_not_wait_for_the_others(
    tmp_path: Path, word: str, status: int, last: str
) -> None:
    process = start(tmp_path, word, WORLD_SIZE="2", RANK="0")
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error.splitlines()[-1]) == (status, last)
