"""The log of a run: one story over kills and resumes, valid JSON, TensorBoard beside it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorgan.runs.log import LOG_NAME, RunLog, read_log

ROOT = Path(__file__).parents[3]


def write_run(folder: Path, *, resume: int | None = None, until: int = 50) -> None:
    first = 0 if resume is None else resume

    with RunLog(folder, resume) as log:
        for images in range(first + 10, until + 1, 10):
            log.write(
                "train",
                images,
                {"loss/generator": 1 / images},
            )
            if images % 20 == 0:
                log.write(
                    "validate",
                    images,
                    {"psnr": float(images), "images": 7.0},
                )
                log.write("save", images, folder="checkpoints/x")


def story(folder: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["images"]) for line in read_log(folder)]


def test_a_line_is_json_with_kind_images_time_and_values(tmp_path: Path) -> None:
    with RunLog(tmp_path / "new" / "run", None) as log:
        log.write(
            "validate",
            20,
            {
                "psnr": math.inf,
                "ssim": math.nan,
                "images": 7,
            },
            note="naïve",
        )
        log.write(
            "event",
            20,
            text="stopped",
            where=Path("a"),
        )
    text = (tmp_path / "new" / "run" / LOG_NAME).read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert first.pop("time") > 1.7e9
    assert first == {
        "kind": "validate",
        "images": 20,
        "values": {"psnr": None, "ssim": None, "images": 7.0},
        "note": "naïve",
    }
    assert second["text"] == "stopped"
    assert second["where"] == "a"
    assert "values" not in second


@pytest.mark.parametrize(
    "resume",
    [None, 0, 20, 30, 50],
)
def test_a_resumed_log_reads_as_one_story(tmp_path: Path, resume: int | None) -> None:
    write_run(tmp_path / "never_stopped")
    write_run(tmp_path / "stopped")
    write_run(tmp_path / "stopped", resume=resume)
    assert story(tmp_path / "stopped") == story(tmp_path / "never_stopped")


@pytest.mark.parametrize(
    "half", [b'{"kind": "train", "ima', b"{}", b'"x"', b"\xff\xfe", b"\n\n", b'{"images": 1}']
)
def test_a_half_written_last_line_is_repaired(tmp_path: Path, half: bytes) -> None:
    write_run(tmp_path)
    whole = (tmp_path / LOG_NAME).read_bytes()
    (tmp_path / LOG_NAME).write_bytes(whole + half)

    assert len(read_log(tmp_path)) == len(whole.splitlines())
    with RunLog(tmp_path, 50) as log:
        log.write("train", 60)
    lines = (tmp_path / LOG_NAME).read_bytes().splitlines()

    assert lines[:-1] == whole.splitlines()
    assert json.loads(lines[-1])["images"] == 60
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".partial")]


def test_an_intact_log_is_not_rewritten(tmp_path: Path) -> None:
    write_run(tmp_path)
    inode = (tmp_path / LOG_NAME).stat().st_ino
    RunLog(tmp_path, 50).close()
    assert (tmp_path / LOG_NAME).stat().st_ino == inode
    RunLog(tmp_path, 20).close()
    assert (tmp_path / LOG_NAME).stat().st_ino != inode


def test_each_line_is_on_disk_when_the_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal, pathlib; from colorgan.runs.log import RunLog\n"
        "log = RunLog(pathlib.Path(sys.argv[1]), None)\n"
        "for images in range(5): log.write('train', images, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(tmp_path),
        ],
        env=environment,
        timeout=60,
    )

    assert ended.returncode == -signal.SIGKILL
    assert story(tmp_path) == [("train", images) for images in range(5)]


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    log = RunLog(tmp_path, None)
    log.close()
    log.close()
    assert read_log(tmp_path) == []


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.binary(max_size=40)
        | st.dictionaries(
            st.sampled_from(["kind", "images", "values", "time"]),
            st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
        ).map(lambda entry: json.dumps(entry).encode()),
        max_size=6,
    )
)
def test_any_log_can_be_read_and_resumed(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / LOG_NAME).write_bytes(b"\n".join(lines))
    for entry in read_log(tmp_path):
        assert isinstance(entry["kind"], str)
        assert entry["images"] >= 0
    with RunLog(tmp_path, 10) as log:
        log.write("train", 20)

    assert [entry["images"] <= 10 for entry in read_log(tmp_path)[:-1]].count(False) == 0
    assert read_log(tmp_path)[-1]["images"] == 20
