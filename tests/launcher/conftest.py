"""A small sample, drawn and packed once, and ways to run the verbs."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.sample.corpus import open_sample, write_sample
from shards.packing.pack import pack

PROJECT = Path(__file__).resolve().parents[2]
LAUNCHER = PROJECT / "launcher"
# A run of seconds: 32x32, width 4, 40 pictures.
TINY = [
    *("--network.image_size", "32", "--network.width", "4", "--discriminator.width", "4"),
    *("--discriminator.num_strided_blocks", "2", "--batch.global_batch_size", "8", "--launch.torch_threads", "1"),
    *("--data.decode_threads", "1", "--output.log_every_images", "16"),
]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed folders by the sample's split: train, val (COCO part), voc-train, voc-val (with masks)."""
    root = tmp_path_factory.mktemp("sample")
    write_sample(root / "raw", num_train=40, num_val=12, num_voc_train=32, num_voc_val=12, size=48)
    folders = {}
    for split in ("train", "val", "voc-train", "voc-val"):
        folders[split] = root / "packed" / split
        pack(open_sample(root / "raw", split), folders[split], root=root / "raw", image_policy="squash:32", workers=0)
    return folders


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb's `main` in this process and return what it printed; its errors are raised."""

    def run(name: str, *words: object) -> str:
        script = runpy.run_path(str(LAUNCHER / f"{name}.py"), run_name=f"launcher_{name}")
        assert script["main"]([str(word) for word in words]) in (None, 0)
        return capsys.readouterr().out

    return run


def command_line(
    *words: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment's bin folder (python, accelerate) as a user would."""
    program = Path(sys.executable).with_name(str(words[0]))
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
