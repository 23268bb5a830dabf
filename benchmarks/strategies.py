"""Compare DDP and ZeRO-1, 2 and 3: the same numbers, bytes held, resuming under another one.

    python benchmarks/strategies.py

Two tables, from real gloo ranks on the CPU and a toy GAN (32x32, width 4):

Equivalence: the largest difference of the weights from one process after 5 steps (SGD, smooth loss,
instance norm, no clipping), for 1 and 2 ranks and accumulation over 1 and 2 micro-batches; the
bytes on a rank before the update.

Resume: a run with Adam and a weight average is stopped half-way and resumed, on the same or another
number of ranks, under the same or another strategy: the largest difference from the uninterrupted
run, and the samples seen.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.checkpoints import save_checkpoint  # noqa: E402
from helpers.toy import ToyLoader, on_ranks, toy_recipe  # noqa: E402

from colorgan.checkpoints.checkpoint import Checkpoint, checkpoint_path, open_checkpoint  # noqa: E402
from colorgan.distributed.launch_profile import LaunchProfile  # noqa: E402
from colorgan.distributed.phase import Phase, Strategy  # noqa: E402
from colorgan.distributed.ranks import Ranks  # noqa: E402
from colorgan.distributed.strategy import open_strategy  # noqa: E402
from colorgan.models.discriminator import Discriminator  # noqa: E402
from colorgan.models.modes import initialise  # noqa: E402
from colorgan.models.unet import Encoder, UNet  # noqa: E402
from colorgan.tasks.colorization import PretrainTask  # noqa: E402
from colorgan.tasks.gan_losses import GAN_LOSSES  # noqa: E402
from colorgan.tasks.pretraining import pretrain  # noqa: E402
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit  # noqa: E402

STRATEGIES = {f"zero{stage}" if stage else "ddp": LaunchProfile(stage) for stage in range(4)}
NUM_STEPS, BATCH, RATE = 5, 8, 0.01
TOTAL, STOP_AT = 48, 24
NETWORK = {"image_size": 32, "width": 4, "norm": "instance"}


@dataclass(frozen=True)
class Equivalence:
    """A row of the first table."""

    strategy: str
    ranks: int
    accumulation: int
    differences: dict[str, float]  # by network
    held: dict[str, int]  # bytes on rank 0: weights, gradients, optimizer


@dataclass(frozen=True)
class Resume:
    """A row of the second table: stopped under one strategy, resumed under another."""

    first: str
    second: str
    ranks: tuple[int, int]
    difference: float
    tensors: int
    equal: int  # tensors that are the same bit for bit
    samples: str  # "each of N once", or what differs from the uninterrupted run


# --- equivalence
# ------------------------------------------------------------------------------------------------


def smooth_gan(
    ranks: Ranks, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> tuple[PretrainTask, Strategy]:
    """Return a GAN without what amplifies rounding noise: no L1, no batch norm."""
    generator = UNet(
        Encoder(
            image_size=32,
            width=4,
            norm="instance",
            bias_before_norm=False,
        ),
        norm="instance",
    ).to(ranks.device)
    discriminator = Discriminator(width=4, num_strided_blocks=2, norm="instance").to(ranks.device)
    phases = []
    for seed, (name, module) in enumerate(
        {"discriminator": discriminator, "generator": generator}.items()
    ):
        initialise(module, seed)
        phases.append(
            Phase(
                name,
                module,
                optimizer(module.parameters()),
                lambda images_seen: RATE,
            )
        )
    task = PretrainTask(
        phases, gan=GAN_LOSSES["least_squares"], gan_weight=1.0, l1_weight=0.0, seed=0
    )
    return task, open_strategy(ranks, phases)


def steps(task: PretrainTask, strategy: Strategy, num_steps: int, accumulation: int) -> None:
    """Train on the toy pictures. Called on all ranks."""
    ranks = strategy.ranks
    loader = ToyLoader(
        BATCH, BATCH // ranks.world_size // accumulation, ranks.rank, ranks.world_size
    )
    nothing = Hooks(
        lambda report: None,
        lambda images: None,
        lambda images: None,
    )
    fit(
        task,
        strategy,
        loader,
        Intervals(num_steps * BATCH, BATCH, BATCH),
        nothing,
        StopSignals(),
    )


def train_and_save(ranks: Ranks, folder: Path) -> None:
    """Train under each strategy; leave checkpoints that record what was held. All ranks."""
    for name, profile in STRATEGIES.items():
        # The profile as if a launcher had set it.
        mine = replace(ranks, profile=profile)
        held = held_bytes(mine)

        for accumulation in (1, 2):
            task, strategy = smooth_gan(
                mine,
                lambda weights: torch.optim.SGD(weights, RATE),
            )
            steps(task, strategy, NUM_STEPS, accumulation)
            save_checkpoint(
                folder / f"{name}-{ranks.world_size}-{accumulation}",
                ranks=mine,
                roles=strategy.state(),
                state={"images_seen": 0, "held": held},
                keep_last=1,
            )
            strategy.release("generator")


def held_bytes(ranks: Ranks) -> dict[str, int]:
    """Return the most bytes this rank holds under Adam after a backward pass of the generator."""
    task, strategy = smooth_gan(
        ranks,
        lambda weights: torch.optim.Adam(weights, RATE),
    )
    seen: dict[str, int] = {}
    # Measured right behind the backward pass, where most is held.
    original = strategy.backward

    def backward(phase: Phase, loss: Tensor) -> None:
        original(phase, loss)
        if phase.name == "generator":
            for kind, tensors in strategy.held().items():
                storages = {
                    t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
                }
                seen[kind] = max(seen.get(kind, 0), sum(storages.values()))

    strategy.backward = backward  # type: ignore[method-assign]
    steps(task, strategy, 2, 2)
    strategy.release("generator")
    return seen


def equivalence(folder: Path) -> Iterator[Equivalence]:
    """Compare the weights of one and of two ranks with those of one process, unaccumulated."""
    reference = open_checkpoint(checkpoint_path(folder / "ddp-1-1", 0))
    for path in sorted(folder.iterdir()):
        name, ranks, accumulation = path.name.split("-")
        checkpoint = open_checkpoint(checkpoint_path(path, 0))

        differences = {}
        for role in ("generator", "discriminator"):
            differences[role] = compare(reference, checkpoint, [role])[0]
        held = checkpoint.state["held"]
        yield Equivalence(
            name,
            int(ranks),
            int(accumulation),
            differences,
            held,
        )


def compare(a: Checkpoint, b: Checkpoint, roles: list[str]) -> tuple[float, int, int]:
    """Return the tensors' largest difference, their number, and how many are equal bit for bit."""
    largest, total, equal = 0.0, 0, 0
    for role in roles:
        ours, theirs = a.tensors(role), b.tensors(role)
        assert ours.keys() == theirs.keys() and ours

        for name, tensor in ours.items():
            largest = max(
                largest,
                float((tensor.double() - theirs[name].double()).abs().max()),
            )
            equal += bool(torch.equal(tensor, theirs[name]))
        total += len(ours)
    return largest, total, equal


# --- resume
# ------------------------------------------------------------------------------------------------


class Recording(ToyLoader):
    """Keeps the ids of the samples it gave.

    Sends the stop signal to the process of rank 0 at a place.
    """

    stop_at: int | None = None

    def batch(self, slots: range) -> Any:
        """Return a micro-batch, as `ToyLoader`, and note it."""
        if self.rank == 0 and slots.start == self.stop_at:
            # As SLURM warns a job before its time is over.
            os.kill(os.getpid(), signal.SIGUSR2)
        self.seen = [
            *getattr(self, "seen", []),
            *slots,
        ]
        return super().batch(slots)


def run(ranks: Ranks, folder: Path, strategy: str, stop_at: int | None = None) -> None:
    """Train a run folder to its end, or to a signal.

    Append the ids of what was seen to `seen.json`.
    """
    recipe = toy_recipe(
        folder,
        network=NETWORK,
        loss={"gan": "least_squares", "l1_weight": 1.0},
        batch={"global_batch_size": BATCH, "micro_batch_size": BATCH // 2},
        optimizer={"learning_rate": 1e-3},
        ema_half_life_images=20,
        output={"save_every_images": 0, "log_every_images": BATCH},
    )

    mine = replace(ranks, profile=STRATEGIES[strategy])
    loader = Recording(
        BATCH,
        BATCH // 2,
        ranks.rank,
        ranks.world_size,
    )
    loader.stop_at = stop_at
    pretrain(
        recipe,
        mine,
        total_images=TOTAL,
        data_digest="toy",
        train=loader,
        val=None,
    )

    seen = ranks.gather(loader.seen)
    if ranks.main:
        log = folder / "seen.json"
        before = json.loads(log.read_text()) if log.exists() else []
        log.write_text(json.dumps([*before, *sorted(i for each in seen for i in each)]))


# Every strategy to itself on other ranks; to and from DDP, and between stages, on the same and on
# other ranks.
Pairs = tuple[tuple[str, str], ...]
PAIRS: Pairs = (
    *((name, name) for name in STRATEGIES),
    *(("ddp", f"zero{stage}") for stage in (1, 2, 3)),
    *((f"zero{stage}", "ddp") for stage in (1, 2, 3)),
    ("zero1", "zero3"),
    ("zero3", "zero2"),
)
WORLDS = ((2, 2), (2, 1), (1, 2))


def start(ranks: Ranks, folder: Path, pairs: Pairs) -> None:
    """Train an uninterrupted run and one that is stopped, under each strategy. All ranks."""
    for name in sorted({first for first, _ in pairs}):
        run(ranks, folder / f"{name}-{ranks.world_size}-whole", name)
        # Several ranks agree on stopping one step late.
        lag = BATCH if ranks.world_size > 1 else 0
        stopped = folder / f"{name}-{ranks.world_size}-stopped"
        run(
            ranks,
            stopped,
            name,
            stop_at=STOP_AT - BATCH - lag,
        )


def go_on(ranks: Ranks, folder: Path, pairs: Pairs) -> None:
    """Resume every stopped run that is to be resumed on this number of ranks. All ranks."""
    for first, second in pairs:
        for before, after in WORLDS:
            if after == ranks.world_size:
                target = folder / f"{first}-{before}-on-{second}-{after}"
                if ranks.main:
                    shutil.copytree(folder / f"{first}-{before}-stopped", target)
                ranks.barrier()
                run(ranks, target, second)


def resumes(folder: Path, pairs: Pairs) -> Iterator[Resume]:
    """Compare the runs that were resumed with those that were not interrupted."""
    for first, second in pairs:
        for before, after in WORLDS:
            whole, target = (
                folder / f"{first}-{before}-whole",
                folder / f"{first}-{before}-on-{second}-{after}",
            )
            a, b = (
                open_checkpoint(checkpoint_path(path / "checkpoints", TOTAL))
                for path in (whole, target)
            )

            stopped = json.loads((folder / f"{first}-{before}-stopped" / "seen.json").read_text())
            # Or the resumed run would prove nothing.
            assert sorted(stopped) == list(range(STOP_AT)), "was not stopped half-way"

            ids = [sorted(json.loads((path / "seen.json").read_text())) for path in (whole, target)]
            samples = (
                f"each of {len(ids[0])} once"
                if ids[0] == ids[1] == list(range(TOTAL))
                else f"{ids}"
            )

            roles = [role for role in a.roles() if role != "probe"]
            yield Resume(
                first,
                second,
                (before, after),
                *compare(a, b, roles),
                samples,
            )


# --- all together
# --------------------------------------------------------------------------------------------------


def two_ranks_first(ranks: Ranks, folder: str, pairs: Pairs) -> None:
    """Do the first of three launches, on two ranks."""
    train_and_save(ranks, Path(folder) / "equivalence")
    start(ranks, Path(folder) / "resume", pairs)


def one_rank(ranks: Ranks, folder: str, pairs: Pairs) -> None:
    """Do the second launch, on one rank: its own runs, and those stopped on two."""
    two_ranks_first(ranks, folder, pairs)
    go_on(ranks, Path(folder) / "resume", pairs)


def two_ranks_again(ranks: Ranks, folder: str, pairs: Pairs) -> None:
    """Do the third launch, in new processes: resume what was stopped on two ranks and on one."""
    go_on(ranks, Path(folder) / "resume", pairs)


def measure(folder: Path, pairs: Pairs = PAIRS) -> tuple[list[Equivalence], list[Resume]]:
    """Run everything in `folder`; return both tables."""
    # Three launches: resuming on another number of ranks needs new processes.
    on_ranks(2, two_ranks_first, str(folder), pairs)
    on_ranks(1, one_rank, str(folder), pairs)
    on_ranks(2, two_ranks_again, str(folder), pairs)
    return list(equivalence(folder / "equivalence")), list(resumes(folder / "resume", pairs))


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        same, resumed = measure(Path(folder))

    print(
        "| strategy | ranks | accumulation | generator | discriminator | weights | gradients | "
        "optimizer |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(
        same,
        key=lambda row: (row.ranks, row.strategy, row.accumulation),
    ):
        held = " | ".join(f"{row.held[kind]:,}" for kind in ("weights", "gradients", "optimizer"))
        differences = " | ".join(
            f"{row.differences[name]:.1e}" for name in ("generator", "discriminator")
        )
        print(f"| {row.strategy} | {row.ranks} | {row.accumulation} | {differences} | {held} |")

    print(
        "\nBytes: the most that rank 0 holds under Adam after a backward of the generator (2 "
        "micro-batches a step).\n"
    )
    print(
        "| stopped under | resumed under | ranks | largest difference | tensors equal bit for bit "
        "| samples |"
    )
    print("|---|---|---|---|---|---|")
    for each in resumed:
        ranks = f"{each.ranks[0]} -> {each.ranks[1]}"
        equal = f"{each.equal} of {each.tensors}"
        print(
            f"| {each.first} | {each.second} | {ranks} | {each.difference:.1e} | {equal} | "
            f"{each.samples} |"
        )


if __name__ == "__main__":
    main()
