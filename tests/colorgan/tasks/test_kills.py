"""SIGKILL at any moment, also inside a save.

An intact checkpoint is found, the end is the same bit for bit.

`benchmarks/kills.py` does the same sixty times, with the real loader and several ranks.
"""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import torch
from helpers.toy import ToyLoader, toy_recipe

from colorgan.checkpoints.checkpoint import Checkpoint, latest_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()
OUTPUT = {"log_every_images": 8, "save_every_images": 8, "validate_every_images": 80}


def _train(folder: str) -> None:
    torch.set_num_threads(1)
    # A checkpoint per step, so that kills often fall into a save.
    recipe = toy_recipe(Path(folder), output=OUTPUT, images=160, ema_half_life_images=20)
    pretrain(
        recipe,
        ONE,
        total_images=160,
        data_digest="abc",
        train=ToyLoader(8, 8),
        val=None,
    )


def start(folder: Path) -> multiprocessing.process.BaseProcess:
    multiprocessing.set_forkserver_preload(
        ["colorgan.tasks.pretraining", "torch.utils.tensorboard"]
    )
    process = multiprocessing.get_context("forkserver").Process(target=_train, args=(str(folder),))
    process.start()
    return process


def newest(folder: Path) -> Checkpoint:
    found = latest_checkpoint(folder / "checkpoints", ONE, lambda text: None)
    assert found is not None
    return found


def test_four_kills(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    killed = tmp_path / "killed"
    whole.join(120)
    draw = random.Random(0)
    seen = 0
    inside = 0
    for number in range(4):
        process = start(killed)
        assert process.pid is not None
        checkpoints = killed / "checkpoints"
        until = time.monotonic() + 60
        # First past a save that this process has made itself, so that each one gets on.
        while time.monotonic() < until and (newest_name(checkpoints) <= seen):
            time.sleep(0.001)
        # Every other kill within a save: the partial folder is there then.
        if number % 2:
            while not any(checkpoints.glob(".images-*.partial")) and process.is_alive():
                pass
            time.sleep(draw.uniform(0, 0.01))
        else:
            time.sleep(draw.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        inside += any(checkpoints.glob(".images-*.partial"))
        # What had been saved is still there, and whole.
        assert newest(killed).images_seen > seen
        seen = newest(killed).images_seen
    last = start(killed)
    last.join(120)

    assert (whole.exitcode, last.exitcode) == (0, 0)
    ours = newest(killed)
    theirs = newest(tmp_path / "whole")

    # Four kills and none give the same weights, bit for bit.
    assert ours.images_seen == theirs.images_seen == 160
    for role in theirs.roles():
        expected = theirs.tensors(role)
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in ours.tensors(role).items()
        ), role
    print(f"4 kills, {inside} inside a save")


def newest_name(checkpoints: Path) -> int:
    """Return the images seen of the newest whole checkpoint, by its name."""
    return max(
        (int(path.name.removeprefix("images-")) for path in checkpoints.glob("images-*")), default=0
    )
