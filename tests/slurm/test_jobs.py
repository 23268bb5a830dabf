"""The batch scripts on a real SLURM of two nodes: same weights, despite signals and deaths.

COLORGAN_TEST_SIGNALS sets how often a run is interrupted (once by default).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.local_slurm import LocalSlurm

pytest_plugins = ["helpers.slurm_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
Weights = Callable[[Path], dict[str, str]]
PRETRAIN = ROOT / "slurm/pretrain.sh"
NUM_SIGNALS = int(os.environ.get("COLORGAN_TEST_SIGNALS", "1"))


def log_of(place: Path, job: str, command: str = "pretrain") -> str:
    path = place / "logs" / f"colorgan-{command}-{job}.log"
    return path.read_text() if path.exists() else ""


def entries(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # Its last line may be half written.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def images(run: Path) -> int:
    return max(
        (entry["images"] for entry in entries(run) if entry["kind"] == "train"),
        default=0,
    )


def submit(
    slurm: LocalSlurm, place: Path, *words: str, script: Path = PRETRAIN, **variables: str
) -> str:
    return slurm.submit(
        script, *words, cwd=place, COLORGAN_SITE=str(place / "site.env"), **variables
    )


def test_two_nodes_train_as_two_processes_do(
    slurm: LocalSlurm, place: Path, words: list[str], weights: Weights, plain: dict[str, str]
) -> None:
    job = submit(
        slurm,
        place,
        *words,
        "--run",
        "two nodes",
        NODES="2",
    )

    assert slurm.wait(job) == "COMPLETED", log_of(place, job)
    # Bit for bit: neither nodes nor SLURM may change a run.
    assert weights(place / "two nodes") == plain
    log = log_of(place, job)

    assert f"log      {place}/logs/colorgan-pretrain-{job}.log" in log
    assert f"folder   {place}/two nodes" in log
    assert "[node node1] task 0, ranks 0 to 0" in log
    assert "[node node2] task 1, ranks 1 to 1" in log
    assert re.search(r"^images 480/480 100% \|", log, re.M), "rank 0's progress as plain lines"
    assert log.rstrip().endswith("done: pretrain, two nodes")


def test_tasks_of_srun_itself_are_the_ranks(
    slurm: LocalSlurm, place: Path, words: list[str], weights: Weights, plain: dict[str, str]
) -> None:
    """One task a rank without a launcher between, on both nodes."""
    script = ["env", "OMP_NUM_THREADS=1", sys.executable, str(ROOT / "launcher/pretrain.py")]
    said = slurm.run(
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        *script,
        *words,
        "--run",
        "by srun",
        cwd=place,
        timeout_s=300,
    )

    assert "2 ranks" in said, said
    assert weights(place / "by srun") == plain


def test_gpus_are_handed_to_the_ranks_and_shards_staged_once(
    slurm: LocalSlurm, place: Path, words: list[str], weights: Weights, plain: dict[str, str]
) -> None:
    scratch = place / "local disk"
    # What a killed job has left; and the user's own, whose names are much alike.
    (scratch / "colorgan-scratch-killed01").mkdir(parents=True)
    (scratch / "colorgan-scratch-killed01" / ".lock").touch()
    own = {scratch / "colorgan-shards", scratch / "colorgan-scratch-mynotes1"}
    for folder in own:
        folder.mkdir()
    job = submit(
        slurm,
        place,
        *words,
        "--run",
        "two gpus",
        GPUS="2",
        SITE_SCRATCH=str(scratch),
    )

    assert slurm.wait(job) == "COMPLETED", log_of(place, job)
    log = log_of(place, job)
    assert "ranks 0 to 1, CUDA_VISIBLE_DEVICES=0,1" in log
    assert weights(place / "two gpus") == plain
    assert (
        len(
            re.findall(
                r"staged packed train to .* 4 of 4 shards, .* MB in .* s \(.* MB/s\), "
                "sha256 checked",
                log,
            )
        )
        == 1
    )
    assert len(re.findall(r"staged packed val", log)) == 1
    # The job's own copy and what the killed one has left are gone, and nothing else is.
    assert set(scratch.iterdir()) == own


def test_signals_lose_nothing(
    slurm: LocalSlurm, place: Path, words: list[str], weights: Weights, plain: dict[str, str]
) -> None:
    run = place / "signalled"
    # Another moment each time: the signal may come in any state of the run.
    chance = random.Random()
    job = submit(
        slurm,
        place,
        *words,
        "--run",
        str(run),
        NODES="2",
    )
    saved: list[int] = []
    for attempt in range(1, NUM_SIGNALS + 1):
        before = (saved or [0])[-1]
        more = chance.randrange(8, 96, 8)
        slurm.wait_for(
            lambda enough=before + more: images(run) >= enough,  # type: ignore[misc]
            f"{more} images more",
        )
        slurm.run("scancel", "--signal=USR2", "--batch", job)
        slurm.wait_for(
            lambda number=attempt: f"attempt {number + 1}," in log_of(place, job),  # type: ignore[misc]
            "the next attempt",
        )
        saved.append(max(entry["images"] for entry in entries(run) if entry["kind"] == "save"))

    assert slurm.wait(job) == "COMPLETED", log_of(place, job)
    log = log_of(place, job)
    assert weights(run) == plain
    assert saved == sorted(set(saved))
    assert saved[-1] < 480, "a signal came after the end: nothing was shown"
    # Every attempt goes on at the very image at which the one before has saved, and none is seen
    # twice.
    assert [
        int(text.replace(",", ""))
        for text in re.findall(r"resumes from .* \(([\d,]+) images seen\)", log)
    ] == saved

    # Each once and in order: nothing was trained twice or left out.
    seen = [entry["images"] for entry in entries(run) if entry["kind"] == "train"]
    assert seen == list(range(8, 481, 8))
    seconds = [
        float(text)
        for text in re.findall(r"requeued: images-\d+ saved ([\d.]+) s after SIGUSR2", log)
    ]

    assert len(seconds) == NUM_SIGNALS
    assert max(seconds) < 30
    print(f"\nsignal to checkpoint: {seconds} s, saved at {saved} images, replayed 0")
    status = slurm.run(
        str(ROOT / "slurm/status.sh"), str(run), COLORGAN_SITE=str(place / "site.env")
    )

    # One more attempt than signals, unless the machine was so loaded that one was lost and made
    # again.
    assert re.search(rf"job {job} \(pretrain\), attempt \d+: done", status)
    assert "images 480 of 480 (100%)" in status
    assert "scores at 480 images: psnr" in status


def test_dead_nodes_do_not_end_a_run(
    slurm: LocalSlurm, place: Path, words: list[str], weights: Weights, plain: dict[str, str]
) -> None:
    run = place / "dead nodes"
    saving = ["--output.save_every_images", "80"]
    job = submit(
        slurm,
        place,
        *words,
        "--run",
        str(run),
        *saving,
        NODES="2",
    )
    slurm.wait_for(lambda: images(run) >= 160, "160 images")
    slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    slurm.wait_for(
        lambda: slurm.field(job, "JobState") == "PENDING",
        "the job to be queued again",
    )
    # Its daemon lives and registers again by itself; when it has not yet, this helps.
    slurm.run("scontrol", "update", "NodeName=node2", "State=RESUME", check=False)
    slurm.wait_for(lambda: "attempt 2," in log_of(place, job), "the second attempt")
    slurm.wait_for(lambda: "resumes from" in log_of(place, job), "the second attempt to go on")
    slurm.kill_node("node2")
    try:
        slurm.wait_for(
            lambda: slurm.field(job, "JobState") != "RUNNING",
            "the death to be seen",
        )
        assert slurm.field(job, "JobState") in ("PENDING", "COMPLETING", "REQUEUED"), log_of(
            place, job
        )
    finally:
        slurm.start_node("node2")

    assert slurm.wait(job) == "COMPLETED", log_of(place, job)
    assert weights(run) == plain
    assert "attempt 3," in log_of(place, job)


@pytest.mark.parametrize(
    ("extra", "status", "told"),
    [
        (["--lerning_rate", "1"], 2, "FAILED: a mistake, told above"),
        (
            ["--optimizer.learning_rate", "1e30"],
            65,
            "FAILED: NaN or infinity in a loss, told above",
        ),
    ],
)
def test_a_jobs_own_fault_is_not_requeued(
    slurm: LocalSlurm, place: Path, words: list[str], extra: list[str], status: int, told: str
) -> None:
    job = submit(
        slurm,
        place,
        *words,
        "--run",
        f"fault {status}",
        *extra,
    )

    assert slurm.wait(job) == "FAILED"
    assert slurm.field(job, "Restarts") == "0"
    assert slurm.field(job, "ExitCode") == f"{status}:0"
    assert told in log_of(place, job)


def stand_in(place: Path, name: str, text: str) -> str:
    """Write a site.env whose jobs run these lines instead of the command; return its path."""
    script = place / f"{name}.sh"
    site = place / f"{name}.env"
    script.write_text(f"#!/bin/bash\n{text}\n")
    script.chmod(0o755)
    site.write_text(f". '{place}/site.env'\nSITE_CONTAINER=('{script}')\n")
    return str(site)


def test_a_job_that_dies_again_and_again_is_given_up(slurm: LocalSlurm, place: Path) -> None:
    site = stand_in(place, "dies", "exit 1")
    job = slurm.submit(
        PRETRAIN, "--run", "dies", cwd=place, COLORGAN_SITE=site, SITE_MAX_IDLE_ATTEMPTS="2"
    )

    assert slurm.wait(job) == "FAILED"
    log = log_of(place, job)
    assert slurm.field(job, "Restarts") == "1"
    assert "requeued: failed (the ranks ended without a word)" in log
    assert (
        "FAILED: the ranks ended without a word; 2 attempts in a row without a new checkpoint"
        in log
    )


def test_a_checkpoint_that_cannot_be_written_in_time_is_told(
    slurm: LocalSlurm, place: Path
) -> None:
    site = stand_in(place, "deaf", "trap '' USR2 TERM; while :; do sleep 1; done")
    job = slurm.submit(
        PRETRAIN, "--run", "deaf", cwd=place, COLORGAN_SITE=site, TIME="1", SITE_SAVE_SECONDS="50",
        SITE_LAST_MOMENT_SECONDS="55",
    )  # fmt: skip
    slurm.wait_for(lambda: "requeued" in log_of(place, job), "the last moment")
    slurm.run("scancel", job)
    log = log_of(place, job)

    assert re.search(
        r"NOT SAVED: \d+ s before the time limit no checkpoint has been written since the signal",
        log,
    )
    assert "requeued: the time limit came before the checkpoint" in log


def test_jobs_on_one_node_meet_at_different_ports(slurm: LocalSlurm, place: Path) -> None:
    site = stand_in(place, "waits", 'sleep 3; echo 0 > "$COLORGAN_STATE/rank-0"')
    jobs = [
        slurm.submit(PRETRAIN, "--run", f"waits {n}", cwd=place, COLORGAN_SITE=site)
        for n in range(3)
    ]

    assert [slurm.wait(job) for job in jobs] == ["COMPLETED"] * 3
    found = [re.search(r"they meet at (\w+):(\d+)", log_of(place, job)) for job in jobs]
    assert len({match[0] for match in found if match}) == 3


def test_an_interface_that_is_not_there_is_told(slurm: LocalSlurm, place: Path) -> None:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command")
    job = submit(slurm, place, "--run", "nowhere", SITE_INTERFACE="ib7")
    assert slurm.wait(job) == "FAILED"
    assert "network interface ib7 has no address here; correct SITE_INTERFACE" in log_of(place, job)


def test_sbatch_itself_takes_the_scripts(slurm: LocalSlurm, place: Path) -> None:
    variables = {"COLORGAN_SITE": str(place / "site.env")}
    words = [
        "--parsable",
        "--nodes=2",
        str(PRETRAIN),
        "--config",
        "my recipe.yaml",
        "--no such key",
        "a b",
    ]
    job = slurm.run(
        "sbatch",
        *words,
        cwd=place,
        **variables,
    ).strip()

    assert slurm.wait(job) == "FAILED"
    log = (place / f"colorgan-pretrain-{job}.log").read_text()
    assert "on 2 node(s): node[1-2]" in log
    assert "this job was submitted for 2" in log
    assert "'--no such key' 'a b'" in log


def test_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    files = [
        *(ROOT / "slurm").glob("*.sh"),
        ROOT / "slurm/site.env",
    ]
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, files)], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout


def test_a_stopped_pack_goes_on(slurm: LocalSlurm, place: Path) -> None:
    fake = place / "bin"
    fake.mkdir()
    (fake / "python").write_text(
        "#!/bin/bash\nif [ -e packed.once ]; then exit 0; fi\ntouch packed.once\nsleep 100\n"
    )
    (fake / "python").chmod(0o755)
    site = stand_in(place, "pack", f"PATH='{fake}':$PATH exec \"$@\"")
    job = slurm.submit(
        ROOT / "slurm/pack.sh", "--out", "some shards", cwd=place, COLORGAN_SITE=site
    )
    slurm.wait_for(lambda: (place / "packed.once").exists(), "the packer to run")
    slurm.run("scancel", "--signal=USR2", "--batch", job)

    assert slurm.wait(job) == "COMPLETED", log_of(place, job, "pack")
    assert slurm.field(job, "Restarts") == "1"
    assert "requeued: SIGUSR2; what is finished is kept" in log_of(place, job, "pack")


def test_the_last_element_of_an_array_requeues_itself_alone(slurm: LocalSlurm, place: Path) -> None:
    """It has the id of the whole array, by which SLURM would end its sibling as well."""
    folder = place / "an array"
    folder.mkdir()
    script = folder / "job.sh"
    script.write_text(
        f"""#!/bin/bash
#SBATCH --requeue --array=0-1 --output=/dev/null --job-name=pair
set -euo pipefail
root='{ROOT}'
. "$root/slurm/common.sh"
echo "$SLURM_ARRAY_TASK_ID started" >>starts
if [ "$SLURM_JOB_ID" != "$SLURM_ARRAY_JOB_ID" ]; then
    # Longer than a requeue takes to end the whole array.
    for _ in {{1..300}}; do
        if [ -e requeued ]; then sleep 5; break; fi
        sleep 0.2
    done
    exit
fi
[ ! -e requeued ] || exit 0
until grep -q "0 started" starts; do sleep 0.2; done
touch requeued
scontrol requeue "$own_job"
sleep 60
"""
    )
    site = {"COLORGAN_SITE": str(place / "site.env")}
    slurm.run("sbatch", "--wait", str(script), cwd=folder, timeout_s=280, **site)

    # The last one a second time, the other never again.
    assert sorted((folder / "starts").read_text().split("\n")) == [
        "",
        "0 started",
        "1 started",
        "1 started",
    ]
