"""Kill a training run with SIGKILL again and again; count what is lost (nothing must be).

    python benchmarks/kills.py [--kills 60] [--ranks 1] [--seed 0]

A tiny run on pictures made here, packed and read by the real loader, is killed at random moments, a third of them
inside a save, and started again until it ends. Checked after each kill: an intact checkpoint is found, and none that
was complete before has gone; at each end: weights, average and optimizers equal those of a run that was left alone.
With several ranks one of them is killed, and the others must end by themselves. The processes are forked from one
that has imported everything, so a start costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "-1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.utils.tensorboard  # so that the forked processes need not
from PIL import Image

from colorgan.checkpoints.checkpoint import Checkpoint, latest_checkpoint
from colorgan.config.recipe import PretrainRecipe
from colorgan.data import open_loaders, open_set
from colorgan.distributed.ranks import Ranks, close_ranks, open_ranks
from colorgan.tasks.pretraining import pretrain
from colorgan.training.plan import check_batch
from datasets.corpora.folder import open_folder
from shards.packing.pack import pack

NUM_PICTURES, NUM_IMAGES, BATCH = 24, 160, 4
LEAVE_S = 20.0  # the other ranks must have ended by then


def recipe_for(run: Path, data: Path) -> PretrainRecipe:
    """Return a recipe of 40 steps with a checkpoint every two."""
    return PretrainRecipe.model_validate(
        {
            "run": run,
            "data": {"train": (data,), "val": (data,), "flip": True, "decode_threads": 1},
            "network": {"image_size": 32, "width": 4},
            "discriminator": {"width": 4, "num_strided_blocks": 2},
            "batch": {"global_batch_size": BATCH},
            "output": {
                "log_every_images": 8,
                "save_every_images": 8,
                "validate_every_images": 80,
                "num_pictures": 0,
            },
            "launch": {"timeout_s": 15, "torch_threads": 1},
            "ema_half_life_images": 20,
            "images": NUM_IMAGES,
        }
    )


def make_data(folder: Path) -> Path:
    """Draw a few pictures and pack them."""
    raw, packed = folder / "raw", folder / "packed"
    (raw / "train").mkdir(parents=True)
    draw = random.Random(0)
    for number in range(NUM_PICTURES):
        picture = Image.new("RGB", (40, 40), tuple(draw.randrange(256) for _ in range(3)))
        picture.paste(tuple(draw.randrange(256) for _ in range(3)), (8, 8, 30, 25))
        picture.save(raw / "train" / f"{number:03d}.png")
    pack(
        open_folder(raw, "train"),
        packed,
        root=raw,
        image_policy="squash:32",
        samples_per_shard=8,
        workers=0,
    )
    return packed


def train(recipe: PretrainRecipe) -> None:
    """What a worker process does: the job of launcher/pretrain.py."""
    ranks = open_ranks(timeout_s=recipe.launch.timeout_s, torch_threads=1)
    shards = open_set(recipe.data.train, *recipe.data.cache, ranks)
    micro = check_batch(recipe, ranks, shards.num_samples)
    with open_loaders(recipe, ranks, shards, shards, micro_batch_size=micro) as loaders:
        pretrain(
            recipe,
            ranks,
            total_images=NUM_IMAGES,
            data_digest=shards.digest,
            train=loaders.train,
            val=loaders.val,
        )
    close_ranks()


def start(recipe: PretrainRecipe, world_size: int) -> list[int]:
    """Fork a process a rank; return their ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(world_size):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        log = os.open(
            recipe.run.with_name(f"output-{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        if world_size > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
            }
            os.environ |= {
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        status = 1
        try:
            train(recipe)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    return processes


def ended(processes: list[int]) -> bool:
    """Collect processes that have ended; return whether all have."""
    for process in list(processes):
        if os.waitpid(process, os.WNOHANG)[0]:
            processes.remove(process)
    return not processes


@dataclass
class Count:
    """What happened."""

    kills: int = 0
    in_save: int = 0
    runs: int = 0
    found: int = 0
    before_first: int = 0
    slowest_leave_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def newest(run: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, every file's digest checked."""
    return latest_checkpoint(run / "checkpoints", Ranks.single(), lambda text: None)


def saving(run: Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any((run / "checkpoints").glob(".images-*.partial"))


def kill_once(
    recipe: PretrainRecipe, world_size: int, inside_a_save: bool, longest_s: float, count: Count
) -> bool:
    """Start the run and kill one rank; return whether the run had ended before."""
    processes = start(recipe, world_size)
    began = time.monotonic()
    moment = began + random.uniform(0, longest_s)
    while not ended(processes) and time.monotonic() < moment:
        time.sleep(0.0005)
    if inside_a_save:
        while not ended(processes) and not saving(recipe.run):
            time.sleep(0.0002)
        time.sleep(random.uniform(0, 0.012))
    if ended(processes):
        return True
    os.kill(random.choice(processes), signal.SIGKILL)
    killed_at = time.monotonic()
    count.kills += 1
    count.in_save += saving(recipe.run)
    while not ended(processes):
        if time.monotonic() > killed_at + LEAVE_S:
            count.faults.append(f"a rank still lived {LEAVE_S} s after another was killed")
            for process in processes:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    count.slowest_leave_s = max(count.slowest_leave_s, time.monotonic() - killed_at)
    return False


def check_after_kill(run: Path, before: int, count: Count) -> int:
    """Return the images seen of the newest intact checkpoint; it is never older than the one before."""
    try:
        found = newest(run)
    except Exception as error:
        count.faults.append(f"{type(error).__name__}: {error}")
        return before
    images = found.images_seen if found else 0
    count.found += found is not None
    count.before_first += found is None
    if images < before:
        count.faults.append(f"the checkpoint at {before} images is gone, the newest is {images}")
    return images


def difference(run: Path, whole: Path) -> str:
    """Return the first tensor in which two finished runs differ, or an empty string."""
    a, b = newest(run), newest(whole)
    if a is None or b is None or a.roles() != b.roles() or a.images_seen != b.images_seen:
        return "not finished alike"
    for role in a.roles():
        ours, theirs = a.tensors(role), b.tensors(role)
        for name in theirs:
            if not torch.equal(ours[name], theirs[name]):
                return f"{role} {name}"
    return ""


def kill_runs(folder: Path, kills: int, world_size: int) -> Count:
    """Kill runs in `folder` until there were that many kills; each run is then left to end and compared."""
    data, count = make_data(folder), Count()
    whole = recipe_for(folder / "whole" / "run", data)
    whole.run.parent.mkdir()
    began = time.monotonic()
    processes = start(whole, world_size)
    while not ended(processes):
        time.sleep(0.01)
    longest_s = time.monotonic() - began
    print(
        f"a run left alone: {longest_s:.1f} s, {NUM_IMAGES // BATCH} steps, {world_size} ranks",
        flush=True,
    )
    while count.kills < kills and not count.faults:
        recipe = recipe_for(folder / f"killed-{count.runs}" / "run", data)
        recipe.run.parent.mkdir()
        images, finished = 0, False
        while not finished:
            if count.kills < kills:
                behind = 3 * count.in_save <= count.kills
                finished = kill_once(recipe, world_size, behind, 0.7 * longest_s, count)
                if not finished:
                    images = check_after_kill(recipe.run, images, count)
            else:
                processes = start(recipe, world_size)
                while not ended(processes):
                    time.sleep(0.01)
                finished = True
        count.runs += 1
        if differs := difference(recipe.run, whole.run):
            count.faults.append(f"run {count.runs} differs from the one left alone: {differs}")
        print(
            f"{count.kills} kills, {count.in_save} inside a save, {count.runs} runs ended",
            flush=True,
        )
    return count


def main() -> int:
    """Kill, count, print; status 1 when anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        count = kill_runs(Path(folder), given.kills, given.ranks)
    print(
        f"{count.kills} kills with SIGKILL, {count.in_save} inside a save; {count.found} times an intact checkpoint "
        f"was found, {count.before_first} times none was written yet; {count.runs} runs ended, equal to the one left "
        f"alone bit for bit: {'no' if count.faults else 'yes'}; slowest end of all ranks {count.slowest_leave_s:.1f} s"
    )
    for fault in count.faults:
        print(f"FAULT: {fault}")
    return bool(count.faults)


if __name__ == "__main__":
    raise SystemExit(main())
