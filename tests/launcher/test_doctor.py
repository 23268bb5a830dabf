"""The doctor: findings of a healthy machine, and of machines with a fault made on purpose."""

from __future__ import annotations

import json
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colorgan.distributed import ranks
from colorgan.doctor import checks, machine
from colorgan.doctor.jobs import JobResult, run_job
from colorgan.doctor.record import Examination, Finding, table
from colorgan.doctor.worker import FAILURE
from colorgan.errors import ExitStatus
from colorgan.training.work import DOCTOR_RECORD

CPU = torch.device("cpu")


@pytest.fixture
def bench(packed: dict[str, Path]) -> checks.Bench:
    return checks.Bench(
        packed["val"],
        image_size=32,
        on_cpu=True,
        world_size=2,
        timeout_s=120,
    )


def result(
    *results: dict[str, Any],
    status: int = 0,
    error: str = "",
) -> JobResult:
    return JobResult(
        list(results),
        (status,),
        0.0,
        (error,),
    )


def answers(monkeypatch: pytest.MonkeyPatch, job: JobResult) -> checks.Bench:
    """Return a bench whose jobs all end with `job`."""
    monkeypatch.setattr(checks, "run_job", lambda *args, **kwargs: job)
    return checks.Bench(
        Path(),
        image_size=32,
        on_cpu=True,
        world_size=2,
    )


def test_this_machine_decodes_as_pillow_does(bench: checks.Bench) -> None:
    finding = checks.check_decoding(bench)
    assert finding.verdict == "fine", finding
    assert finding.figures["images"] == 12
    assert finding.figures["high"] < 1e-4  # the same libjpeg-turbo
    assert finding.figures["shift"] < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"median": 0.02, "high": 0.3, "shift": 0.0},
        {"median": 0.001, "high": 0.3, "shift": 0.0},
        {"median": 0.0019, "high": 0.049, "shift": 0.02},  # as six levels brighter gives
    ],
)
def test_a_decoder_that_disagrees_is_broken(
    wrong: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = answers(monkeypatch, result({"images": 8, **wrong}))
    finding = checks.check_decoding(bench)

    assert finding.verdict == "broken"
    assert "other pixels" in finding.detail
    assert "do not train here" in finding.advice


def test_an_error_on_one_rank_ends_all(
    bench: checks.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def recorded(*args: Any, **kwargs: Any) -> JobResult:
        jobs.append(run_job(*args, **kwargs))
        return jobs[-1]

    monkeypatch.setattr(checks, "run_job", recorded)
    finding = checks.check_error_on_one_rank(bench)

    assert finding.verdict in ("fine", "slow"), finding  # slow: a busy machine
    assert "with the reason" in finding.detail
    assert sum(FAILURE in text for text in jobs[0].errors) == 1
    assert all(jobs[0].statuses)


def test_ranks_add_up(bench: checks.Bench) -> None:
    finding = checks.check_all_reduce(bench)
    assert finding.verdict == "fine", finding
    assert finding.figures["gb_per_s"] > 0


def test_a_resumed_run_equals_the_uninterrupted_one(bench: checks.Bench, tmp_path: Path) -> None:
    finding = checks.check_resume(bench, tmp_path)
    assert finding.verdict == "fine", finding
    assert set(finding.figures.values()) == {0.0}


def test_a_resume_that_differs_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = answers(monkeypatch, result({"difference": 1.1e-3}))
    finding = checks.check_resume(bench, tmp_path)
    assert finding.verdict == "broken"
    assert "fp32 0.0011" in finding.detail


def test_the_fastest_setting_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"fp32": 10.0, "bf16": 25.0}
    measured = [
        {
            "global_batch_size": 32,
            "precision": p,
            "channels_last": False,
            "images_per_s": rates[p],
            "gflop": 2.0,
        }
        for p in rates
    ]
    full = {"global_batch_size": 512, "precision": "bf16", "channels_last": False}
    measured.append({**full, "images_per_s": None, "problem": "out of memory"})
    bench = answers(monkeypatch, result(*measured))

    findings, batch = checks.measure_steps(
        bench,
        {"width": 4},
        [32],
        with_bf16=True,
        seconds=1,
    )

    assert batch == {"global_batch_size": 32, "precision": "bf16", "channels_last": False}
    assert [finding.verdict for finding in findings] == ["fine", "fine", "broken"]
    # What dry runs estimate times from.
    assert checks.best_rates(findings) == {"fp32": 20.0, "bf16": 50.0}


def test_a_job_that_fails_gives_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = answers(
        monkeypatch,
        result(status=1, error="Traceback\nRuntimeError: no DALI\n"),
    )
    finding = checks.check_loader(bench, 8, 1.0)
    assert (finding.verdict, finding.detail) == ("broken", "RuntimeError: no DALI")


def test_a_job_that_hangs_is_killed_and_named() -> None:
    job = run_job(
        "allreduce",
        {"megabytes": 1, "repeats": 1},
        on_cpu=True,
        timeout_s=0.2,
    )

    assert job.statuses == (None,)
    assert job.reason == "rank 0 did not end within the time limit"


def test_the_other_ranks_end_soon_after_one_has_failed() -> None:
    """Whether they notice it themselves, as over gloo, or would wait a minute, as a GPU does."""
    began = time.monotonic()
    job = run_job("fail", {}, world_size=3, on_cpu=True, timeout_s=120)
    assert job.statuses[1] not in (0, None, -signal.SIGKILL)
    assert FAILURE in job.reason
    failed_at = next(each["failed_at"] for each in job.results)
    assert job.ended - failed_at < 15 < 120 > time.monotonic() - began


def test_a_sentence_of_ours_says_itself_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sentence = "/dev/shm has 2 MiB free: remove files there"
    error = f"a library's warning\ncolorgan.errors.UsageError: {sentence}\n"
    finding = checks.check_resume(
        answers(monkeypatch, result(status=ExitStatus.MISTAKE, error=error)), tmp_path
    )
    assert (finding.verdict, finding.detail) == ("broken", sentence)
    assert finding.advice == "mend that, then examine the machine again"


def test_a_full_shared_memory_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda path: SimpleNamespace(free=1e6),
    )
    finding = machine.check_shared_memory(tmp_path)

    assert finding.verdict == "broken"
    assert finding.detail.startswith("1 MB free")
    assert machine.check_shared_memory(tmp_path / "absent").verdict == "broken"


def test_other_load_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load_of_others", lambda: 64.0)
    finding = machine.check_cores()
    assert finding.verdict == "slow"
    assert "load by others 64.0" in finding.detail


@pytest.mark.parametrize(
    ("load", "verdict"),
    [(0.0, "broken"), (99.0, "not checked")],
)
def test_a_job_out_of_time_on_a_busy_machine_says_nothing(
    monkeypatch: pytest.MonkeyPatch, load: float, verdict: str
) -> None:
    job = JobResult([], (None,), 0.0, ("",))
    monkeypatch.setattr(machine, "load_of_others", lambda: load)
    finding = checks.check_loader(answers(monkeypatch, job), 32, 1.0)

    assert finding.verdict == verdict
    assert "did not end within the time limit" in finding.detail


def test_a_low_limit_of_open_files_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    finding = machine.check_open_files()
    assert (finding.verdict, finding.advice) == ("broken", "ulimit -n 4096")


def test_a_driver_without_a_gpu_for_torch_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90.07\n")
    monkeypatch.setattr(ranks, "NVIDIA_VERSION", version)
    finding = machine.check_driver(CPU)
    assert finding.verdict == "broken"
    assert "driver 550.9 is loaded" in finding.detail

    monkeypatch.setattr(ranks, "NVIDIA_VERSION", tmp_path / "absent")
    assert machine.check_driver(CPU).verdict == "fine"


def test_a_disk_without_room_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_disk(tmp_path).figures["read_mb_per_s"] > 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert machine.check_disk(tmp_path).verdict == "broken"
    assert list(tmp_path.iterdir()) == []


def test_the_record_and_the_table(tmp_path: Path) -> None:
    findings = (
        Finding(
            name="disk",
            verdict="slow",
            detail="word " * 40,
            advice="move",
        ),
        Finding(name="bf16", verdict="broken", detail="no"),
    )
    examination = Examination(device="CPU", versions={}, findings=findings)
    assert examination.broken

    plain = json.loads(examination.write(tmp_path / "new").read_text())
    assert plain["findings"][0]["verdict"] == "slow"
    assert (tmp_path / "new" / DOCTOR_RECORD).is_file()

    lines = table(findings).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-2].split() == ["do", "this:", "move"]
