"""slurm/study.sh on a real SLURM: up to the report, nothing twice; a failure stops the chain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.local_slurm import LocalSlurm

pytest_plugins = ["helpers.slurm_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "slurm/study.sh"
TINY = """\
pretrain:
  tiny:
    images: 64
    network: {image_size: 32, width: 4, dropout: 0}
    loss: {gan: none, l1_weight: 100}
    batch: {global_batch_size: 16}
    launch: {torch_threads: 1}
    output: {save_every_images: 0, validate_every_images: 0, log_every_images: 16}
protocols: [voc2012-classification]
seeds: [0]
epochs_times: {voc2012-classification: 0.01}
finetune: {head_width: 16, launch.torch_threads: 1, data.random_crop_min_area: 1}
"""
# A set that cannot be packed.
BAD = TINY.replace("    images: 64\n", "    images: 64\n    data: {train: [photos]}\n") + (
    "pack: {photos: {corpus: folder, root: /nowhere, split: all}}\n"
)


def submit(slurm: LocalSlurm, place: Path, study: str, **variables: str) -> str:
    words = [
        str(STUDY),
        "--config",
        f"{study}.yaml",
        "--out",
        f"studies/{study}",
    ]

    return slurm.run(
        *words,
        cwd=place,
        COLORGAN_SITE=str(place / "site.env"),
        **variables,
    )


def status(slurm: LocalSlurm, place: Path, study: str) -> str:
    words = [str(ROOT / "slurm/status.sh"), f"studies/{study}"]
    return slurm.run(*words, cwd=place, COLORGAN_SITE=str(place / "site.env"))


@pytest.mark.timeout(1300)
def test_a_study_goes_from_nothing_to_the_report_once(slurm: LocalSlurm, place: Path) -> None:
    (place / "tiny.yaml").write_text(TINY)
    text = submit(slurm, place, "tiny")
    print(text)
    for line in (
        r"└── pretrain-tiny: job \d+",
        r"└── consolidate-tiny: job \d+",
        r"voc2012-classification-scratch-0: job \d+",
        r"table: job \d+  \(after \d+ more\)",
        r"└── report: job \d+",
    ):
        assert re.search(line, text), line

    # While its jobs wait or run: none may be queued twice.
    again = submit(slurm, place, "tiny")
    assert "\n0 jobs submitted" in again
    assert "(in the queue already)" in again

    slurm.wait_for(lambda: not slurm.jobs(), "the study to end", timeout_s=1200)
    message = status(slurm, place, "tiny")
    print(message)
    assert "FAILED" not in message, message
    assert "voc2012-classification" in (place / "studies/tiny/study.json").read_text()
    assert (place / "studies/tiny/report/report.md").exists()

    # After its end: nothing is left to do.
    last = submit(slurm, place, "tiny")
    assert "\n0 jobs submitted" in last, last
    assert slurm.jobs() == []


def test_a_step_that_is_asked_to_stop_saves_and_resumes(slurm: LocalSlurm, place: Path) -> None:
    # Longer than the test lives: only a signal ends it.
    (place / "long.yaml").write_text(TINY.replace("images: 64", "images: 1000000"))
    text = submit(slurm, place, "long")
    jobs = dict(re.findall(r"(\S+): job (\d+)", text))
    job = jobs["pretrain-tiny"]
    run = place / "studies/long/pretrain/tiny"
    log = place / f"studies/long/logs/colorgan-pretrain-tiny-{job}.log"
    try:
        slurm.wait_for(
            lambda: (run / "log.jsonl").exists() and '"train"' in (run / "log.jsonl").read_text(),
            "the first steps",
            timeout_s=600,
        )

        # To the batch script alone, as SLURM itself does before the limit.
        slurm.run("scancel", "--signal=USR2", "--batch", job)
        slurm.wait_for(lambda: "requeued: " in log.read_text(), "the end", timeout_s=120)
        slurm.wait_for(lambda: "attempt 2," in log.read_text(), "the next attempt", timeout_s=300)
        saved = re.search(r"requeued: (images-\d+) saved [\d.]+ s after SIGUSR2", log.read_text())
        assert saved, log.read_text()
        assert (run / "checkpoints" / saved[1]).exists()
    # Or the tests after this one would wait for jobs that end by a signal only.
    finally:
        slurm.run("scancel", *jobs.values())


def test_a_failing_pack_stops_the_chain(slurm: LocalSlurm, place: Path) -> None:
    (place / "bad.yaml").write_text(BAD)
    text = submit(slurm, place, "bad")
    slurm.wait_for(lambda: not slurm.jobs(), "the queue to be empty", timeout_s=600)
    jobs = dict(re.findall(r"(\S+): job (\d+)", text))
    assert slurm.field(jobs["pack-photos"], "JobState") == "FAILED"
    # Not waiting for ever, as a plain dependency would.
    assert slurm.field(jobs["pretrain-tiny"], "JobState") == "CANCELLED"
    assert slurm.field(jobs["report"], "JobState") == "CANCELLED"

    log = next((place / "studies/bad/logs").glob("colorgan-pack-photos-*.log")).read_text()
    assert "FAILED: a mistake, told above" in log
    assert re.search(r"pack-photos +job +\d+ +FAILED or cancelled", status(slurm, place, "bad"))
    assert "\n0 jobs submitted" not in submit(slurm, place, "bad"), (
        "a failed step is submitted again"
    )
    slurm.wait_for(lambda: not slurm.jobs(), "the queue to be empty", timeout_s=600)
