"""The report: seeds in one row, other recipes in others, the source of each number, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

SCRIPT = Path(__file__).parents[2] / "launcher/report.py"


def run_folder(folder: Path, seed: int, init: str, accuracy: float, *, evaluated: bool = True) -> Path:
    folder.mkdir(parents=True)
    recipe = {"run": str(folder), "seed": seed, "task": "classify", "init": init, "stages": [{"epochs": 1}]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    scores = {"mAP": accuracy, "images": 16.0}
    if evaluated:
        (folder / "evaluation").mkdir()
        (folder / "evaluation/scores.json").write_text(json.dumps({"scores": scores, "inference": "running"}))
    else:
        (folder / "log.jsonl").write_text(json.dumps({"kind": "validate", "images": 320, "values": scores}) + "\n")
    return folder


def report(out: Path, *runs: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), "--out", str(out), *map(str, runs)]
    return subprocess.run(words, capture_output=True, text=True)


def test_seeds_are_one_row_and_starts_are_two(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path / "a", 0, "scratch", 0.2),
        run_folder(tmp_path / "b", 1, "scratch", 0.4),
        run_folder(tmp_path / "c", 0, "some/generator", 0.5, evaluated=False),
    ]
    done = report(tmp_path / "report", *runs)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report/report.md").read_text()
    assert "| scratch | 0, 1 | 0.3 ± 0.14 | 16 | running | evaluation |" in text
    assert "| generator | 0 | 0.5 | 16 | running | validation at 320 images |" in text
    assert [entry["scores"]["mAP"] for entry in json.loads((tmp_path / "report/report.json").read_text())] == [
        0.2,
        0.4,
        0.5,
    ]


def test_a_folder_without_a_run_or_scores_is_refused(tmp_path: Path) -> None:
    done = report(tmp_path / "report", tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("UsageError: ")
    assert "is no run folder" in done.stderr
