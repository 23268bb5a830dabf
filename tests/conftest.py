"""For every test: GPUs are hidden without `-m gpu`, and OpenMP is set before torch loads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Imported before torch, which it gives OpenMP's settings.
import colorgan  # noqa: F401

NVIDIA_DEVICE = Path("/dev/nvidia0")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs before anything imports torch, unless the tests marked `gpu` are asked for."""
    expression = config.getoption("-m") or ""
    asked = "gpu" in expression and "not gpu" not in expression
    if NVIDIA_DEVICE.exists() and not asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` with the reason, where no GPU is visible."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return

    import torch

    if not torch.cuda.is_available():
        reason = "needs a CUDA device: run `pytest -m gpu` on a machine with one"
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))
