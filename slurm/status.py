"""What `slurm/status.sh DIR` prints: what of a run or a study is queued, running or done, how far, the last score.

Reads <run>/log.jsonl, <run>/slurm/jobs.tsv (written by slurm/common.sh) and <study>/steps/ (written by slurm/study.sh),
and asks squeue. The standard library alone: it runs wherever SLURM's commands do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    queue = read_queue()
    if (folder / "steps").is_dir():
        print_study(folder, queue)
    else:
        print_run(folder, queue)


def read_queue() -> list[Queued]:
    """The user's jobs; empty where SLURM does not answer."""
    words = ["squeue", "--me", "-h", "-r", "-o", "%F|%A|%j|%T|%M|%R"]
    try:
        text = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        print("note: SLURM does not answer; this is what is on disk")
        return []
    return [Queued(*line.split("|", 5)) for line in text.splitlines() if line.count("|") >= 5]


def print_study(folder: Path, queue: list[Queued]) -> None:
    """A line a step: done, running, queued or neither; then each run that has a log."""
    steps = folder / "steps"
    for name, elements in (line.split() for line in read(steps / ".order").splitlines()):
        number, job_name = [*read(steps / f"{name}.job").split(), "-", ""][:2]
        finished = len(list(steps.glob(f"{name}.done")) + list(steps.glob(f"{name}.*.done")))
        # Ids begin again where a cluster is set up anew: the name tells whether it is this step's job.
        there = [line for line in queue if (line.array, line.name) == (number, job_name)]
        if there:
            counts = {
                state: sum(line.state == state for line in there)
                for state in {line.state for line in there}
            }
            state = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))
            reasons = {line.reason for line in there if line.state == "PENDING"}
            state += f" {' '.join(sorted(reasons))}" if reasons else ""
        else:
            state = "FAILED or cancelled: see its log, then run slurm/study.sh again"
            if finished:
                state = (
                    f"{finished} of {elements} done, the others {state}"
                    if finished < int(elements)
                    else "done"
                )
        print(
            f"{name:28} job {number:>6}  {state}{f', {finished} done' if there and finished else ''}"
        )
    for log in sorted(folder.glob("**/log.jsonl")):
        print(f"\n{log.parent.relative_to(folder)}")
        print_progress(log.parent)


def print_run(folder: Path, queue: list[Queued]) -> None:
    """Each job that has worked on the run, then how far it is."""
    jobs: dict[str, list[list[str]]] = {}
    for line in read(folder / "slurm/jobs.tsv").splitlines():
        fields = line.split("\t")
        if len(fields) == 7:
            jobs.setdefault(fields[2], []).append(fields)
    for number, events in jobs.items():
        at, _, _, command, attempt, event, reason = events[-1]
        there = [line for line in queue if line.job == number and line.name == f"colorgan-{command}"]
        state = f"{there[0].state} {there[0].elapsed} {there[0].reason}" if there else event
        when = time.strftime("%F %T", time.localtime(int(at)))
        if not there and event in ("started", "submitted", "requeued"):
            state = "GONE from the queue without a word: submit the same command again"
        print(
            f"job {number} ({command}), attempt {attempt}: {state}; last: {event} {when}{f', {reason}' if reason else ''}"
        )
    if not jobs:
        print(f"{folder}: no job has worked on it (no slurm/jobs.tsv)")
    print_progress(folder)


def print_progress(run: Path) -> None:
    """Images, rate, time left, the newest checkpoint and the last score of a run."""
    last: dict[str, dict[str, Any]] = {}
    total = 0
    for line in read(run / "log.jsonl").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # being written
            continue
        last[entry.get("kind", "")] = entry
        total = entry.get("total_images", total)
    if "train" in last:
        entry = last["train"]
        rate = entry.get("values", {}).get("images_per_s") or 0.0
        left = clock(max(0, total - entry["images"]) / rate) if rate and total else "?"
        share = f" of {total:,} ({entry['images'] / total:.0%})" if total else ""
        ago = clock(max(0.0, time.time() - entry["time"]))
        print(
            f"  images {entry['images']:,}{share}, {rate:,.0f} images/s, time left {left} (logged {ago} ago)"
        )
    if "save" in last:
        print(f"  checkpoint at {last['save']['images']:,} images")
    if "validate" in last:
        scores = ", ".join(
            f"{key} {value:.4g}"
            for key, value in last["validate"]["values"].items()
            if value is not None
        )
        print(f"  scores at {last['validate']['images']:,} images: {scores}")
    evaluation = read(run / "evaluation/scores.json")
    if evaluation:
        print(f"  evaluated: {scores_text(json.loads(evaluation)['scores'])}")


def scores_text(scores: dict[str, float | None]) -> str:
    """Each score by its name."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def read(path: Path) -> str:
    """A file's text; empty where it is not there."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
