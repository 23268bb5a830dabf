"""What a run was made with: library versions, the commit of this source, the machine's device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from colorgan.runs.reading import CHANGED

# The report's name of each library -> its distribution.
LIBRARIES = {
    "torch": "torch",
    "DALI": "nvidia-dali-cuda130",
    "numpy": "numpy",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
}


def versions(source: str) -> dict[str, str]:
    """Return the versions of Python and the installed libraries, and the commit as `source`."""
    by_name = {"Python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            by_name[name] = version(distribution)
        except PackageNotFoundError:
            continue  # DeepSpeed is optional
    return {**by_name, "source": source}


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # The cores that this process may use, which is what its speed depends on.
    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def source_version() -> str:
    """Return the commit of this source tree, or the installed version outside a git checkout.

    The commit ends with CHANGED where its Python files have been edited since.
    """
    # Of this file's folder, wherever the command was started. An installed package may lie within
    # the user's own repository, which does not know this file.
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "HEAD")
        changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ":/*.py")
        return f"{commit}{CHANGED}" if changes else commit
    except (OSError, subprocess.SubprocessError):
        return _installed_version()


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()


def _installed_version() -> str:
    try:
        return version("colorgan")
    except PackageNotFoundError:
        return "unknown"
