"""What a run was made with, for its log: versions of the libraries, the commit of this source, the machine's device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# As the report names them -> the distribution's name.
LIBRARIES = {
    "torch": "torch",
    "DALI": "nvidia-dali-cuda130",
    "numpy": "numpy",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
}


def versions(source: str) -> dict[str, str]:
    """Return name -> version of Python, the libraries that are installed, and the source's commit as `source`."""
    found = {"Python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue  # DeepSpeed is optional
    return {**found, "source": source}


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def source_version() -> str:
    """Return the commit of this source tree, or the installed version where it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass

    try:
        return version("colorgan")
    except PackageNotFoundError:
        return "unknown"
