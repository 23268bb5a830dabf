"""Ways to run the commands as users do, and a recipe of seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LAUNCHER = PROJECT / "launcher"
# What the fixture `command` returns: runs a command in this process, and returns what it printed.
Command = Callable[..., str]
# Of fine-tuning from scratch, but for the width.
FROM_SCRATCH = [
    "--network.image_size",
    32,
    "--batch.global_batch_size",
    4,
    "--launch.torch_threads",
    1,
    "--data.decode_threads",
    1,
    "--init",
    "scratch",
]
# A run of seconds: 32x32, width 4, 40 pictures.
TINY = [
    "--network.image_size",
    "32",
    "--network.width",
    "4",
    "--discriminator.width",
    "4",
    "--discriminator.num_strided_blocks",
    "2",
    "--batch.global_batch_size",
    "8",
    "--launch.torch_threads",
    "1",
    "--data.decode_threads",
    "1",
    "--output.log_every_images",
    "16",
]


def command_line(
    *words: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment's bin folder (python, accelerate) as a user would."""
    # Beside this Python, so that an installed one elsewhere on PATH is never tested.
    program = Path(sys.executable).with_name(str(words[0]))
    # What the test's own launcher has set would hold for the command, too.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}

    return subprocess.run(
        [str(program), *map(str, words[1:])],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, **(env or {})},
        cwd=cwd,
        check=False,
    )
