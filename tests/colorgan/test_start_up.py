"""What importing the package sets for libraries that are loaded later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import os
import colorgan
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000 None"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None PASSIVE"),
        ({"GOMP_SPINCOUNT": "5"}, "5 None"),
    ],
)
def test_openmp_spins_briefly_unless_the_user_has_chosen(
    given: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    output = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**kept, "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert output.strip() == expected
