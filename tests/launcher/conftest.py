"""A small sample, drawn and packed once, and ways to run the commands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from helpers.commands import LAUNCHER, Command
from helpers.drawn_sample import write_sample

from datasets.sample.corpus import open_sample
from shards.packing.pack import pack


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed folders by the sample's split: train, val (COCO part), voc-train, voc-val (masks)."""
    root = tmp_path_factory.mktemp("sample")
    write_sample(root / "raw", num_train=40, num_val=12, num_voc_train=32, num_voc_val=12, size=48)
    folders = {}

    for split in ("train", "val", "voc-train", "voc-val"):
        folders[split] = root / "packed" / split
        pack(
            open_sample(root / "raw", split),
            folders[split],
            root=root / "raw",
            image_policy="squash:32",
            workers=0,
        )

    return folders


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command's `main` in this process and return what it printed; its errors are raised."""

    def run(name: str, *words: object) -> str:
        script = runpy.run_path(str(LAUNCHER / f"{name}.py"), run_name=f"launcher_{name}")
        assert script["main"]([str(word) for word in words]) in (None, 0)
        return capsys.readouterr().out

    return run
