"""Print how a run or a study on SLURM is doing: `slurm/status.sh DIR`.

Shows what is queued, running or done, the progress and the last scores. Reads <run>/log.jsonl,
<run>/slurm/jobs.tsv (written by slurm/common.sh) and <study>/steps/ (by slurm/study.sh), and asks
squeue. The standard library alone: it runs wherever SLURM's commands do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SQUEUE = ["squeue", "--me", "-h", "-r", "-o", "%F|%A|%j|%T|%M|%R"]


@dataclass(frozen=True)
class Queued:
    """A line of the queue: a job, or an element of an array (`array` is then the array's id)."""

    array: str
    job: str
    name: str
    state: str
    elapsed: str
    reason: str


def main(folder: Path) -> None:
    """Print a study's steps, or one run."""
    # Asked once: a busy SLURM answers slowly.
    queue = read_queue()
    if (folder / "steps").is_dir():
        print_study(folder, queue)
    else:
        print_run(folder, queue)


def read_queue() -> list[Queued]:
    """Return the user's jobs; none if SLURM does not answer."""
    try:
        done = subprocess.run(
            SQUEUE,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        print("note: SLURM does not answer; this is what is on disk")
        return []

    # The reason comes last and may hold anything, bars too.
    lines = [
        line.split(
            "|",
            5,
        )
        for line in done.stdout.splitlines()
    ]
    return [Queued(*fields) for fields in lines if len(fields) == 6]


def print_study(folder: Path, queue: list[Queued]) -> None:
    """Print a line per step, then the progress of each run that has a log."""
    steps = folder / "steps"
    for line in read(steps / ".order").splitlines():
        name, _, output = line.partition("\t")
        job, job_name = [*read(steps / f"{name}.job").split(), "-", ""][:2]
        # Ids begin again on a fresh cluster: the name tells whether the job is this step's.
        queued = [each for each in queue if (each.array, each.name) == (job, job_name)]
        print(f"{name:44} job {job:>6}  {step_state(steps, name, output, queued)}")

    for log in sorted(folder.glob("**/log.jsonl")):
        print(f"\n{log.parent.relative_to(folder)}")
        print_progress(log.parent)


def step_state(steps: Path, name: str, output: str, queued: list[Queued]) -> str:
    """Return a step's state in words: in the queue, done, diverged, or failed."""
    if queued:
        counts = Counter(each.state.lower() for each in queued)
        state = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        reasons = {each.reason for each in queued if each.state == "PENDING"}
        return " ".join([state, *sorted(reasons)])

    if (steps / f"{name}.diverged").exists():
        return "diverged"
    # The study's own steps leave their output only.
    if (steps / f"{name}.done").exists() or (output and Path(output).exists()):
        return "done"
    return "FAILED or cancelled: read its log, then run slurm/study.sh again"


def print_run(folder: Path, queue: list[Queued]) -> None:
    """Print each job that has worked on the run, then its progress."""
    jobs: dict[str, list[str]] = {}
    for line in read(folder / "slurm/jobs.tsv").splitlines():
        fields = line.split("\t")
        if len(fields) == 7:
            jobs[fields[2]] = fields  # the last event counts

    for job, fields in jobs.items():
        print_job(job, fields, queue)
    if not jobs:
        print(f"{folder}: no job has worked on it (no slurm/jobs.tsv)")
    print_progress(folder)


def print_job(job: str, fields: list[str], queue: list[Queued]) -> None:
    """Print a job's state and its last event."""
    at, _, _, command, attempt, event, reason = fields
    queued = [each for each in queue if each.job == job]

    state = event
    if queued:
        state = f"{queued[0].state} {queued[0].elapsed} {queued[0].reason}"
    # A job that died with its node has left no last word.
    elif event in ("started", "submitted", "requeued"):
        state = "GONE from the queue without a message: submit the same command again"

    when = time.strftime(
        "%F %T",
        time.localtime(int(at)),
    )
    last = f"{event} {when}" + (f", {reason}" if reason else "")
    print(f"job {job} ({command}), attempt {attempt}: {state}; last: {last}")


def print_progress(run: Path) -> None:
    """Print images, rate, time left, the newest checkpoint and the last scores of a run."""
    last, total = last_entries(run / "log.jsonl")
    if "train" in last:
        print(f"  {progress_text(last['train'], total)}")
    if "save" in last:
        print(f"  checkpoint at {last['save']['images']:,} images")
    if "validate" in last:
        scores = scores_text(last["validate"]["values"])
        print(f"  scores at {last['validate']['images']:,} images: {scores}")

    evaluation = read(run / "evaluation/scores.json")
    if evaluation:
        print(f"  evaluated: {scores_text(json.loads(evaluation)['scores'])}")


def last_entries(log: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the last entry of each kind in a run's log, and the images that the run will see."""
    last: dict[str, dict[str, Any]] = {}
    total = 0
    for line in read(log).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # being written
            continue
        # Later lines replace earlier ones.
        last[entry.get("kind", "")] = entry
        total = entry.get("total_images", total)

    return last, total


def progress_text(entry: dict[str, Any], total: int) -> str:
    """Return images seen, their share, the rate and the time left."""
    images = entry["images"]
    rate = (
        entry.get(
            "values",
            {},
        ).get("images_per_s")
        or 0.0
    )

    left = (
        clock(
            max(
                0,
                total - images,
            )
            / rate
        )
        if rate and total
        else "?"
    )
    share = f" of {total:,} ({images / total:.0%})" if total else ""
    ago = clock(
        max(
            0.0,
            time.time() - entry["time"],
        )
    )
    return f"images {images:,}{share}, {rate:,.0f} images/s, time left {left} (logged {ago} ago)"


def scores_text(scores: dict[str, float | None]) -> str:
    """Return each score with its name."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def read(path: Path) -> str:
    """Return a file's text, or "" if it cannot be read."""
    try:
        # A file that is being written may end in half a character.
        return path.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY),
            1,
        )
