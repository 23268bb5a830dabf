"""Put runs side by side: the scores of each, mean and spread over seeds, as report.md and report.json.

A run's scores are those of RUN/evaluation/scores.json (launcher/evaluate.py --out RUN/evaluation), else of the last
validation in its log. Runs whose recipes differ in the seed alone are one row.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from colorgan.cli import parse, run_verb
from colorgan.errors import ColorganError, UsageError
from colorgan.runlog import LOG_NAME, read_log

# The scores that the tables show; report.json has all.
SHOWN = ("psnr", "ssim", "mAP", "first_positive_accuracy", "mIoU", "mIoU_void_as_background", "pixel_accuracy")


class ReportSettings(BaseModel):
    """What to report, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="folder for report.md and report.json; made if it is not there")
    runs: tuple[Path, ...] = Field(min_length=1, description="run folders of pretraining and fine-tuning")


@dataclass(frozen=True)
class RunScores:
    """One run: its recipe, its scores, and what they were computed with."""

    folder: Path
    recipe: dict[str, Any]
    scores: dict[str, float]
    source: str  # `evaluation`, or `validation at N images` of a run that was not evaluated
    inference: str

    @property
    def task(self) -> str:
        """What was learnt."""
        return str(self.recipe.get("task", "colour"))

    @property
    def init(self) -> str:
        """What it started from."""
        return "scratch" if self.recipe.get("init", "scratch") == "scratch" else "generator"

    @property
    def row(self) -> str:
        """Everything but the seed and the folder: runs that share it are one row."""
        kept = {key: value for key, value in self.recipe.items() if key not in ("seed", "run", "output", "launch")}
        return json.dumps([kept, self.source.split()[0], self.inference], sort_keys=True, default=str)


def main(argv: list[str]) -> int:
    """Report; return the exit status."""
    settings = parse(
        ReportSettings,
        argv,
        verb="python launcher/report.py",
        description=__doc__ or "",
        next_line="python launcher/colorize.py --generator DIR --out DIR PHOTO...",
        positional="runs",
    )
    runs = [read_run(folder) for folder in settings.runs]
    rows: dict[str, list[RunScores]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    text = report_text(rows.values())
    settings.out.mkdir(parents=True, exist_ok=True)
    write(settings.out / "report.md", text)
    listed = [{"run": str(r.folder), "task": r.task, "init": r.init, "seed": r.recipe.get("seed"), "source": r.source,
               "inference": r.inference, "scores": r.scores} for r in runs]  # fmt: skip
    write(settings.out / "report.json", json.dumps(listed, indent=1) + "\n")
    print(text)
    return 0


def read_run(folder: Path) -> RunScores:
    """Read a run's recipe and scores.

    Raises:
        UsageError: it is no run folder, or it was never scored.
    """
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    except OSError:
        raise UsageError(f"{folder} is no run folder (no recipe.yaml in it): give the --run of a training") from None
    path = folder / "evaluation" / "scores.json"
    if path.is_file():
        found = json.loads(path.read_text())
        return RunScores(folder, recipe, found["scores"], "evaluation", found["inference"])
    log = read_log(folder) if (folder / LOG_NAME).is_file() else []
    for entry in reversed(log):
        if entry["kind"] == "validate":
            source = f"validation at {entry['images']:,} images"
            return RunScores(folder, recipe, entry["values"], source, str(recipe.get("inference", "running")))
    raise UsageError(
        f"{folder} has no scores: accelerate launch launcher/evaluate.py --model MODEL --data DIR "
        f"--out {folder}/evaluation"
    )


def report_text(rows: Iterable[list[RunScores]]) -> str:
    """Return the page: a table a task, a row for runs that differ in the seed alone."""
    by_task: dict[str, list[list[RunScores]]] = {}
    for runs in rows:
        by_task.setdefault(runs[0].task, []).append(runs)
    lines = ["# Report", "", "Mean and, with several seeds, the sample standard deviation after ±."]
    for task, members in by_task.items():
        names = [name for name in SHOWN if any(name in run.scores for runs in members for run in runs)]
        lines += ["", f"## {task}", "", f"| start | seeds | {' | '.join(names)} | images | inference | from | runs |"]
        lines += ["|" + "---|" * (len(names) + 6)]
        lines += [row_text(runs, names) for runs in members]
    return "\n".join(lines) + "\n"


def row_text(runs: list[RunScores], names: list[str]) -> str:
    """Return one row of the table."""
    first = runs[0]
    cells = [first.init if first.task != "colour" else "-", ", ".join(str(run.recipe.get("seed", 0)) for run in runs)]
    cells += [spread([run.scores[name] for run in runs if name in run.scores]) for name in names]
    cells += [f"{first.scores.get('images', 0):.0f}", first.inference, first.source]
    return f"| {' | '.join(cells)} | {', '.join(str(run.folder) for run in runs)} |"


def spread(values: list[float]) -> str:
    """Return a mean, with the standard deviation of a sample where there are several."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    run_verb(main, ColorganError)
