"""The GPU path on a machine without a GPU: whole steps on fake CUDA tensors (helpers/fake_cuda.py).

A CPU tensor that meets a CUDA tensor raises, as on a GPU; and the number of times that a step makes
the host wait for the device is held: each wait drains the queue of kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = PROJECT / "tests" / "helpers" / "gpu_steps.py"
MAX_DETECTION_OPERATORS = 600
MAX_DETECTION_WAITS = 2


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    """Run all cases once, in a process that the fake may change."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result.pop("case"): result for result in results}


def test_the_fake_refuses_mixed_devices(cases: dict[str, dict[str, Any]]) -> None:
    assert "cuda:0 and cpu" in cases["mixing"]["raised"]


@pytest.mark.parametrize(
    "case",
    [
        "pretrain fp32",
        "pretrain bf16",
        "pretrain bf16 channels_last",
        "pretrain accumulated",
    ],
)
def test_a_pretraining_step_never_waits(
    cases: dict[str, dict[str, Any]],
    case: str,
) -> None:
    """Both turns with clipping and EMA; the optimizers' state is on the device."""
    result = cases[case]
    assert result["waits"] == {}
    assert result["devices"] == ["cuda"]
    assert result["operators"] > 500


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_a_finetuning_step_keeps_to_the_device(
    cases: dict[str, dict[str, Any]],
    task: str,
) -> None:
    assert sum(cases[f"finetune {task}"]["waits"].values()) <= MAX_DETECTION_WAITS


def test_the_detection_loss_is_one_for_the_batch(cases: dict[str, dict[str, Any]]) -> None:
    """With a loop over 16 images it took thousands of operators and a wait for each image."""
    detection = cases["finetune detect"]
    assert detection["loss_operators"] <= MAX_DETECTION_OPERATORS
    assert sum(detection["loss_waits"].values()) <= MAX_DETECTION_WAITS


def test_colors_are_converted_on_the_device(cases: dict[str, dict[str, Any]]) -> None:
    assert cases["colors"]["devices"] == ["cuda"]
    assert cases["colors"]["waits"] == {}


def test_a_generator_is_scored_on_the_device(cases: dict[str, dict[str, Any]]) -> None:
    """One wait for a batch: the copy of its table of scores."""
    result = cases["evaluate generator"]
    assert result["rows"] == 4
    assert sum(result["waits"].values()) == 1


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_a_model_is_evaluated_on_the_device(cases: dict[str, dict[str, Any]], kind: str) -> None:
    result = cases[f"evaluate {kind}"]
    assert result["devices"] == ["cuda"]
    assert result["waits"] == {}
