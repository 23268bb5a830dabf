"""slurm/study.sh on a real SLURM: from nothing to the report, nothing twice, and a failure that stops the chain."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.local_slurm import LocalSlurm

pytest_plugins = ["helpers.slurm_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "slurm/study.sh"
TINY = """\
SETS="pretrain_train pretrain_val transfer_train transfer_val"
sample=(--corpus sample --root "$PWD/raw set" --image squash:32)
pack_pretrain_train=("${sample[@]}" --split train --samples_per_shard 16)
pack_pretrain_val=("${sample[@]}" --split val)
pack_transfer_train=("${sample[@]}" --split voc-train)
pack_transfer_val=("${sample[@]}" --split voc-val)
small=(--network.image_size 32 --network.width 4 --batch.global_batch_size 16 --launch.torch_threads 1)
pretrain=(--images 64 --discriminator.width 4 --discriminator.num_strided_blocks 2 "${small[@]}")
SEEDS="0 1"
TASKS="classify"
classify_sets="transfer_train transfer_val"
classify_words=(--task classify --head_width 16 "${small[@]}")
classify_scratch=(--stages '[{epochs: 1, learning_rate: 0.001}]')
classify_generator=(--stages '[{epochs: 1, learning_rate: 0.001, features: frozen}]')
"""


def submit(slurm: LocalSlurm, place: Path, study: str, **variables: str) -> str:
    words = [str(STUDY), study, "--out", f"studies/{study}"]
    return slurm.run(*words, cwd=place, COLORGAN_SITE=str(place / "site.env"), **variables)


def status(slurm: LocalSlurm, place: Path, study: str) -> str:
    words = [str(ROOT / "slurm/status.sh"), f"studies/{study}"]
    return slurm.run(*words, cwd=place, COLORGAN_SITE=str(place / "site.env"))


def test_a_study_goes_from_nothing_to_the_report_once(slurm: LocalSlurm, place: Path) -> None:
    (place / "tiny.env").write_text(TINY)
    text = submit(slurm, place, "tiny.env", SITE_PACK_PARTS="2")
    print(text)
    assert "16 jobs submitted" in text
    for line in (
        r"├── pack_pretrain_train: job \d+ \[1,2\]",
        r"│   └── pack_pretrain_train_merge: job \d+",
        r"│       └── pretrain: job \d+  \(also after pack_pretrain_val_merge\)",
        r"│           └── consolidate: job \d+",
        r"classify_scratch: job \d+ \[0,1\]",
        r"report: job \d+  \(also after .*\)",
    ):
        assert re.search(line, text), line
    again = submit(slurm, place, "tiny.env", SITE_PACK_PARTS="2")
    assert "0 jobs submitted" in again
    assert "(in the queue already)" in again
    slurm.wait_for(lambda: not slurm.jobs(), "the study to end", timeout_s=1200)
    told = status(slurm, place, "tiny.env")
    assert "FAILED" not in told, told
    report = (place / "studies/tiny.env/report/report.md").read_text()
    print(told, report)
    assert re.search(r"\| scratch \| 0, 1 \| [\d.]+ ± ", report)
    assert re.search(r"\| generator \| 0, 1 \| [\d.]+ ± ", report)
    last = submit(slurm, place, "tiny.env", SITE_PACK_PARTS="2")
    assert "0 jobs submitted" in last
    assert last.count(": done") == 16
    assert slurm.jobs() == []


def test_a_failing_pack_stops_the_chain(slurm: LocalSlurm, place: Path) -> None:
    (place / "bad.env").write_text(
        TINY.replace('sample --root "$PWD/raw set"', "folder --root /nowhere")
    )
    text = submit(slurm, place, "bad.env")
    slurm.wait_for(lambda: not slurm.jobs(), "the queue to be empty")
    jobs = dict(re.findall(r"(\w+): job (\d+)", text))
    assert slurm.field(jobs["pack_pretrain_train"], "JobState") == "FAILED"
    assert slurm.field(jobs["pretrain"], "JobState") == "CANCELLED"
    assert slurm.field(jobs["report"], "JobState") == "CANCELLED"
    log = (
        place / f"studies/bad.env/logs/colorgan-pack-{jobs['pack_pretrain_train']}.log"
    ).read_text()
    assert "FAILED: a mistake, told above" in log
    told = status(slurm, place, "bad.env")
    assert re.search(r"pack_pretrain_train +job +\d+ +FAILED or cancelled: see its log", told)
    assert "jobs submitted" in text
    assert "0 jobs submitted" not in submit(slurm, place, "bad.env"), (
        "what has failed is submitted again"
    )
    slurm.wait_for(lambda: not slurm.jobs(), "the queue to be empty")
