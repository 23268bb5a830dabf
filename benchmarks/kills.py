"""Kill training runs with SIGKILL again and again; count what is lost (nothing must be).

    python benchmarks/kills.py [--kills 60] [--ranks 1 2] [--strategies ddp zero2] [--all] [--seed
    0]

A tiny run on images drawn here, packed and read by the real loader, is killed at random moments, a
third of them inside a save, and started again until it ends. Checked after each kill: an intact
checkpoint is found, and none that was complete before is gone. At each end: weights, average and
optimizers equal those of a run that was left alone. With several ranks one of them is killed, and
the others must end by themselves. `--all` spreads the kills over every strategy, 1 and 2 ranks,
saving in the background or not, and both memory formats. The processes are forked from one that has
imported everything, so that a start costs a fraction of a second.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "-1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.utils.tensorboard  # so that the forked processes need not
from PIL import Image

from colorgan.checkpoints.checkpoint import Checkpoint, latest_checkpoint
from colorgan.config.recipe import PretrainRecipe
from colorgan.data import open_loaders, open_set
from colorgan.distributed.ranks import Ranks, joined_ranks
from colorgan.distributed.rendezvous import JOIN_TIMEOUT_S
from colorgan.tasks.pretraining import pretrain
from colorgan.training.plan import check_batch
from datasets.corpora.folder import open_folder
from shards.packing.pack import pack

NUM_PICTURES, NUM_IMAGES, BATCH = 24, 160, 4
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
TIMEOUT_S = 30.0  # of the launch: so long a rank waits within a collective
# The other ranks must have ended by then; for one that has not joined yet they wait longest.
LEAVE_S = max(TIMEOUT_S, JOIN_TIMEOUT_S) + 10.0


@dataclass(frozen=True)
class Case:
    """A way to run."""

    strategy: str = "ddp"
    world_size: int = 1
    background: bool = True
    channels_last: bool = False

    @property
    def name(self) -> str:
        """The case as text, fit for a folder's name."""
        saving = "background" if self.background else "foreground"
        form = "-nhwc" if self.channels_last else ""
        return f"{self.strategy}-{self.world_size}-{saving}{form}"


def all_cases(strategies: Sequence[str], ranks: Sequence[int]) -> list[Case]:
    """Return every combination; NHWC is for DDP only."""
    cases = []
    flags = (True, False)
    for strategy, size, background, nhwc in product(
        strategies,
        ranks,
        flags,
        flags,
    ):
        if strategy == "ddp" or not nhwc:
            cases.append(Case(strategy, size, background, nhwc))
    return cases


def recipe_for(run: Path, data: Path, case: Case) -> PretrainRecipe:
    """Return a recipe of 40 steps with a checkpoint every two."""
    return PretrainRecipe.model_validate(
        {
            "run": run,
            "data": {"train": (data,), "val": (data,), "flip": True, "decode_threads": 1},
            "network": {"image_size": 32, "width": 4},
            "discriminator": {"width": 4, "num_strided_blocks": 2},
            "batch": {"global_batch_size": BATCH, "channels_last": case.channels_last},
            "output": {
                "log_every_images": 8,
                "save_every_images": 8,
                "validate_every_images": 80,
                "num_pictures": 0,
                "background_save": case.background,
            },
            "launch": {"timeout_s": TIMEOUT_S, "torch_threads": 1},
            "ema_half_life_images": 20,
            "images": NUM_IMAGES,
        }
    )


def make_data(folder: Path) -> Path:
    """Draw a few images and pack them."""
    raw, packed = folder / "raw", folder / "packed"
    (raw / "train").mkdir(parents=True)
    draw = random.Random(0)
    for number in range(NUM_PICTURES):
        # Drawn by the seed: the pictures of two calls are the same.
        background, square = (tuple(draw.randrange(256) for _ in range(3)) for _ in range(2))
        picture = Image.new("RGB", (40, 40), background)
        # An edge and two colors: something to learn.
        picture.paste(square, (8, 8, 30, 25))
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
    """Do the job of launcher/pretrain.py in a worker process."""
    with joined_ranks(timeout_s=recipe.launch.timeout_s, torch_threads=1) as ranks:
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


def start(recipe: PretrainRecipe, case: Case) -> list[int]:
    """Fork one process per rank; return their ids."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # A new port per start: the last one may still be closing.
        port = listener.getsockname()[1]

    processes = []
    for rank in range(case.world_size):
        # Forked, as importing torch takes longer than the run.
        process = os.fork()
        if process:
            processes.append(process)
        else:
            _run_rank(recipe, case, rank, port)
    return processes


def _run_rank(recipe: PretrainRecipe, case: Case, rank: int, port: int) -> None:
    """Train as one rank, with output to a file beside the run; never return."""
    path = recipe.run.with_name(f"output-{rank}.txt")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if case.strategy != "ddp":
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = case.strategy.removeprefix("zero")
    if case.world_size > 1:
        size = str(case.world_size)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
        os.environ |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(port)

    status = 1
    try:
        train(recipe)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        # Without the parent's exit handlers, which would run in each child.
        os._exit(status)


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

    def add(self, other: Count) -> None:
        """Add another case's count."""
        self.kills += other.kills
        self.in_save += other.in_save
        self.runs += other.runs
        self.found += other.found
        self.before_first += other.before_first
        self.slowest_leave_s = max(self.slowest_leave_s, other.slowest_leave_s)
        self.faults += other.faults


def newest(run: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, every file's digest checked."""
    return latest_checkpoint(
        run / "checkpoints",
        Ranks.single(),
        lambda text: None,
    )


def saving(run: Path) -> bool:
    """Return whether a checkpoint is half-written."""
    return any((run / "checkpoints").glob(".images-*.partial"))


def kill_once(
    recipe: PretrainRecipe, case: Case, inside_a_save: bool, longest_s: float, count: Count
) -> bool:
    """Start the run and kill one rank; return whether the run had ended before."""
    processes = start(recipe, case)
    # Anywhere in the run, its start and its end included.
    moment = time.monotonic() + random.uniform(0, longest_s)
    while not ended(processes) and time.monotonic() < moment:
        time.sleep(0.0005)

    if inside_a_save:
        while not ended(processes) and not saving(recipe.run):
            time.sleep(0.0002)
        # Somewhere in the save, which takes about that long.
        time.sleep(random.uniform(0, 0.012))
    if ended(processes):
        return True

    os.kill(random.choice(processes), signal.SIGKILL)
    killed_at = time.monotonic()
    count.kills += 1
    count.in_save += saving(recipe.run)
    while not ended(processes):
        if time.monotonic() > killed_at + LEAVE_S:
            count.faults.append(f"{case.name}: a rank lived {LEAVE_S} s after another was killed")
            for process in processes:
                os.kill(process, signal.SIGKILL)
            break
        time.sleep(0.005)
    while not ended(processes):
        time.sleep(0.005)
    count.slowest_leave_s = max(count.slowest_leave_s, time.monotonic() - killed_at)
    return False


def check_after_kill(run: Path, before: int, count: Count) -> int:
    """Return the images seen of the newest intact checkpoint.

    It is never older than the one before.
    """
    try:
        checkpoint = newest(run)
    except Exception as error:
        count.faults.append(f"{type(error).__name__}: {error}")
        return before

    images = checkpoint.images_seen if checkpoint else 0
    count.found += checkpoint is not None
    count.before_first += checkpoint is None
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


def run_to_the_end(recipe: PretrainRecipe, case: Case) -> None:
    """Start a run and wait until it has ended."""
    processes = start(recipe, case)
    while not ended(processes):
        time.sleep(0.01)


def kill_runs(folder: Path, data: Path, case: Case, kills: int) -> Count:
    """Kill runs of a case until there were that many kills.

    Each is then left to end and compared.
    """
    count = Count()
    whole = recipe_for(folder / "whole" / "run", data, case)
    whole.run.parent.mkdir(parents=True)
    began = time.monotonic()
    run_to_the_end(whole, case)
    longest_s = time.monotonic() - began

    while count.kills < kills and not count.faults:
        recipe = recipe_for(folder / f"killed-{count.runs}" / "run", data, case)
        recipe.run.parent.mkdir()
        images, finished = 0, False
        while not finished:
            if count.kills >= kills:
                run_to_the_end(recipe, case)
                break
            # A third of the kills are to be inside a save.
            inside = 3 * count.in_save <= count.kills
            finished = kill_once(recipe, case, inside, 0.7 * longest_s, count)
            if not finished:
                images = check_after_kill(recipe.run, images, count)

        count.runs += 1
        if differs := difference(recipe.run, whole.run):
            count.faults.append(f"{case.name}: run {count.runs} differs: {differs}")
    print(
        f"{case.name:26} {count.kills} kills, {count.in_save} inside a save, {count.runs} runs "
        f"ended, a run left alone {longest_s:.1f} s",
        flush=True,
    )
    # At once: a benchmark of hours may be stopped before its end.
    for fault in count.faults:
        print(f"FAULT: {fault}", flush=True)
    return count


def main() -> int:
    """Kill, count, print; status 1 when anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60, help="in all")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        default=[1],
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=["ddp"],
    )
    parser.add_argument("--all", action="store_true", help="every combination")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    # The moments differ all the same: they depend on the machine.
    random.seed(given.seed)
    cases = [Case(strategy, size) for strategy in given.strategies for size in given.ranks]
    if given.all:
        cases = all_cases(STRATEGIES, (1, 2))
    if any(case.strategy != "ddp" for case in cases):
        # Once, before the processes are forked: it takes seconds.
        os.environ |= {"DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error"}
        import deepspeed  # noqa: F401

    total = Count()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        for case in cases:
            total.add(
                kill_runs(
                    Path(folder) / case.name,
                    data,
                    case,
                    given.kills // len(cases),
                )
            )

    print(
        f"{total.kills} kills with SIGKILL, {total.in_save} inside a save; {total.found} times an "
        f"intact checkpoint was found, {total.before_first} times none was written yet; "
        f"{total.runs} runs ended, equal to the one left alone bit for bit: "
        f"{'no' if total.faults else 'yes'}; slowest end of all ranks {total.slowest_leave_s:.1f} s"
    )
    return bool(total.faults)


if __name__ == "__main__":
    raise SystemExit(main())
