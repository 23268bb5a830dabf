"""The command `report`: from real run folders to a page, and what it says to mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import TINY, Command

from colorgan.errors import UsageError


def test_real_runs_become_a_page(tmp_path: Path, packed: dict[str, Path], command: Command) -> None:
    run, tuned = tmp_path / "a run", tmp_path / "tuned"
    data = ["--data.train", packed["train"], "--data.val", packed["val"], "--run", run]
    command("pretrain", *data, "--images", 16, "--loss.gan", "bce", *TINY)
    data = [
        "--data.train",
        packed["voc-train"],
        "--data.val",
        packed["voc-val"],
        "--run",
        tuned,
        "--head_width",
        8,
    ]
    small = ["--network.image_size", 32, "--network.width", 4, "--batch.global_batch_size", 8]
    command(
        "finetune",
        *data,
        *small,
        "--stages",
        "[{epochs: 0.5, learning_rate: 0.001}]",
        "--launch.torch_threads",
        1,
    )
    command(
        "evaluate",
        "--model",
        tuned / "model",
        "--data",
        packed["voc-train"],
        "--out",
        tuned / "evaluation",
    )
    command("consolidate", "--run", run)
    command(
        "evaluate",
        "--model",
        run / "generator",
        "--data",
        packed["val"],
        "--out",
        tmp_path / "colours",
    )
    out = tmp_path / "report"
    told = command("report", "--out", out, run, tuned, tmp_path / "colours")

    assert told.rstrip().endswith(f"Next: open {out / 'report.html'} in a browser")
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "12 held-out images" in page
    assert "own, on voc-val" in page
    assert text.count("| scratch | 0 |") == 2  # the validation set and the evaluation's
    assert (out / "progress-1.png").exists()
    assert "<h2>By class</h2>" in page
    assert "Confusion, scratch" in page
    assert torch.__version__ in page
    assert "Best by PSNR" in page


def test_a_folder_that_is_no_run_is_told_and_nothing_is_written(
    tmp_path: Path, command: Command
) -> None:
    (tmp_path / "no run").mkdir()

    with pytest.raises(
        UsageError,
        match=r"no run has no recipe\.yaml, study\.json, scores\.json or probe\.json: give",
    ):
        command("report", "--out", tmp_path / "out", tmp_path / "no run")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="runs"):
        command("report", "--out", tmp_path / "out")


def test_help_names_the_keys_and_the_next_line(
    capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    with pytest.raises(SystemExit) as ended:
        command("report", "--help")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--out" in told
    assert "python launcher/colorize.py" in told
