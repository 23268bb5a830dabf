"""Measure peak memory and time of consolidating a large checkpoint, beside copying the result.

    python benchmarks/consolidation.py [--width 200] [--folder DIR]

Makes a checkpoint of a generator of that width (200: 530 million weights, 2.1 GB) as two ranks
would have written it, consolidates it in a fresh process, and prints that process's peak resident
memory (VmHWM) above what it had after its imports, beside the largest tensor. Needs three times the
file's size on the disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.distributed.ranks import Ranks
from colorgan.models.model_config import WEIGHTS, Architecture, ModelConfig
from colorgan.models.model_folder import build_model, probe
from colorgan.models.modes import initialise


def make(folder: Path, width: int) -> int:
    """Write the checkpoint; return the bytes of the largest tensor."""
    architecture = Architecture(
        image_size=256, width=width, norm="batch", bias_before_norm=False, dropout=0.5
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=128.0)
    module = build_model(config)
    initialise(module, 0)

    roles = {
        "generator": module.state_dict(),
        "probe": {"raw": probe(module, 256, torch.device("cpu"))},
    }
    state = {"images_seen": 1, "model_role": "generator", "model": config.model_dump(mode="json")}
    # In the foreground, so that the file is whole when measuring begins.
    writer = CheckpointWriter(
        folder,
        Ranks.single(),
        keep_last=1,
        background=False,
    )
    writer.start(roles, state)
    writer.close()
    return max(tensor.nbytes for tensor in module.state_dict().values())


def memory(key: str) -> int:
    """Return VmHWM or VmRSS of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(folder: Path, largest: int) -> None:
    """Consolidate and print."""
    idle = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    began = time.perf_counter()
    checkpoint = open_checkpoint(next(folder.glob("images-*")))
    checked = time.perf_counter()
    consolidate(checkpoint, folder / "generator")
    done = time.perf_counter()

    peak = memory("VmHWM")
    weights = folder / "generator" / WEIGHTS
    size = weights.stat().st_size
    # The yardstick: the same bytes through the same disk.
    shutil.copyfile(weights, folder / "copy")
    copied = time.perf_counter() - done

    print(f"{size / 1e9:.2f} GB of weights, largest tensor {largest / 1e6:.0f} MB")
    print(
        f"idle {idle / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB: {(peak - idle) / 1e6:.0f} MB above "
        "idle"
    )
    print(
        f"within the largest tensor + 200 MB: {'yes' if peak - idle <= largest + 200e6 else 'NO'}"
    )
    print(
        f"every file's sha256 {checked - began:.1f} s, consolidation and probe "
        f"{done - checked:.1f} s,",
        end=" ",
    )
    print(f"copying the file {copied:.1f} s")


def main() -> None:
    """Make the checkpoint here, measure in a process that has only imported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where to write; unset: a temporary folder")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.folder, given.measure)
        return

    # On the disk that is asked for: its speed is part of the figures.
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        largest = make(Path(folder), given.width)
        # A fresh process: this one has held the whole network.
        command = [sys.executable, __file__, "--folder", folder, "--measure", str(largest)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
