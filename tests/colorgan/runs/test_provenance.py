"""What a run says that it was made with."""

from __future__ import annotations

import platform

import numpy as np
import torch

from colorgan.runs.provenance import device_name, versions


def test_versions_are_those_that_are_imported() -> None:
    found = versions("c0ffee")
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["DALI"].count(".") >= 1
    assert found["source"] == "c0ffee"


def test_the_device_is_named() -> None:
    assert device_name(torch.device("cpu")).startswith("CPU, ")
