"""The plan: lengths and batches, and memory and communication beside what is measured."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import small_classifier
from helpers.toy import ToyLoader, toy_recipe
from torch import nn

from colorgan.data import open_loaders
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.tasks.colorization import build_pretraining
from colorgan.training import plan
from colorgan.training.memory import (
    STRATEGIES,
    activation_bytes,
    count_saved,
    held_bytes,
    memory_bytes,
    sent_bytes,
)
from colorgan.training.plan import check_batch, check_machine, plan_text, start_text
from colorgan.training.schedules import images_to_see

ONE = Ranks.single()
FOUR = Ranks(0, 4, torch.device("cpu"))


@pytest.mark.parametrize(
    ("images", "epochs", "expected"),
    [
        (100, None, 104),
        (None, 2.0, 200),
        (None, None, 2000),
        (1, None, 8),
    ],
)
def test_lengths_are_whole_steps(images: int | None, epochs: float | None, expected: int) -> None:
    assert images_to_see(images, epochs, 100, 8) == expected


def test_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    assert check_batch(toy_recipe(tmp_path), FOUR, 100) == 2
    assert (
        check_batch(
            toy_recipe(tmp_path, batch={"global_batch_size": 8, "micro_batch_size": 1}), FOUR, 100
        )
        == 1
    )
    with pytest.raises(UsageError, match="6 does not divide into 4 ranks: make it a multiple of 4"):
        check_batch(toy_recipe(tmp_path, batch={"global_batch_size": 6}), FOUR, 100)
    with pytest.raises(UsageError, match="has 7 images, fewer than one"):
        check_batch(toy_recipe(tmp_path), ONE, 7)


def test_estimated_memory_is_what_a_step_takes(tmp_path: Path) -> None:
    task, strategy = build_pretraining(toy_recipe(tmp_path), ONE, 8)
    estimated = memory_bytes(strategy.bare, 32, 8, num_micro_batches=2)
    kept = []
    for phase in task.phases:
        with strategy.turn(phase):
            parameters = [
                p
                for module in strategy.bare.values()
                for p in module.state_dict(keep_vars=True).values()
            ]
            with count_saved(parameters) as saved:
                loss, _ = task.loss(
                    phase, ToyLoader(8, 8).batch(range(8)), strategy.networks(phase)
                )
            loss.backward()
            kept.append(saved.num_bytes)
            gradients = sum(p.grad.nbytes for p in phase.module.parameters() if p.grad is not None)
            assert gradients == sum(p.nbytes for p in phase.module.parameters())
            phase.optimizer.step()

    # The estimate has neither the losses nor the pictures themselves, and counts the weights' share
    # in neither.
    assert estimated["activations"] == pytest.approx(max(kept), rel=0.15)
    assert estimated["weights"] == sum(
        p.nbytes for m in strategy.bare.values() for p in m.parameters()
    )

    moments = [
        t
        for phase in task.phases
        for s in phase.optimizer.state.values()
        for t in s.values()
        if t.dim()
    ]

    assert estimated["optimizer"] == sum(t.nbytes for t in moments)


def test_counting_activations_changes_no_network() -> None:
    network = small_classifier(image_size=32, width=4, num_classes=3, hidden_width=8)
    network.encoder.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    small, large = (activation_bytes(network, 32, size) for size in (2, 4))

    assert 1.9 * small < large <= 2.0 * small + 8192
    assert modes == [part.training for part in network.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    linear = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.ReLU(),
    )

    assert (
        activation_bytes(linear, 8, 3) == 3 * 64 * 4 + 3 * 5 * 4
    )  # the input and what ReLU lets through


MEMORY = {"weights": 1000, "gradients": 1000, "optimizer": 2000, "activations": 70}


@pytest.mark.parametrize(
    ("strategy", "held", "sent"),
    [
        ("ddp", 4000, 1500),
        ("zero1", 2000 + 750, 1500),
        ("zero2", 1000 + 1000, 2250),
        ("zero3", 1250, 4500),
    ],
)
def test_each_strategy_shares_out_what_it_says(strategy: str, held: int, sent: int) -> None:
    assert held_bytes(strategy, MEMORY, 4) == held + 70
    assert sent_bytes(strategy, 1000, 4, 2) == sent
    assert sent_bytes(strategy, 1000, 1, 2) == 0


def test_the_plan_names_all_of_it(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "total_images": 48,
        "num_samples": 24,
        "num_shards": 3,
        "micro_batch_size": 1,
    }
    big = {name: value * 2**20 for name, value in MEMORY.items()}
    text = plan_text(
        **arguments,
        recipe=toy_recipe(tmp_path),
        ranks=FOUR,
        memory=big,
    )

    assert "48 = 2.00 passes over 24 in 3 shards" in text
    assert "6 of 8 images: 4 ranks x 2 micro-batches x 1" in text
    assert "checkpoints 3 of 3,000 MiB" in text
    assert "6,000 MiB on the disk" in text
    assert all(strategy in text for strategy in STRATEGIES)
    assert "zero3     1,320 MiB per rank, sends 4,500 MiB per rank and step" in text


def test_the_decoders_share_comes_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(tmp_path, data={"hardware_decoder_share": 0.25})
    opened: list[dict[str, Any]] = []

    class Recorded:
        def __init__(self, shards: object, **arguments: Any) -> None:
            opened.append(arguments)

        def close(self) -> None: ...

    monkeypatch.setattr("colorgan.data.Loader", Recorded)
    a_set: Any = None
    with open_loaders(recipe, ONE, a_set, object(), micro_batch_size=2):  # type: ignore[arg-type]
        assert [arguments["hardware_decoder_share"] for arguments in opened] == [0.25, 0.25]


def test_the_first_line_names_device_ranks_batch_precision_threads_and_data(
    tmp_path: Path,
) -> None:
    recipe = toy_recipe(tmp_path, data={"train": ("shards/a", "shards/b")})
    text = start_text(recipe, FOUR, "NVIDIA H100")
    threads = torch.get_num_threads()
    assert text == (
        f"NVIDIA H100, 4 ranks (ddp), fp32, {threads} threads\n"
        "  8 images per step: 1 x 2 per rank, data shards/a shards/b"
    )


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "shared", "message"),
    [
        (100 << 10, 1 << 30, r"has 100 KiB free, but the run's checkpoints need .* MiB \(2 kept"),
        (1 << 40, 1 << 20, r"has 1 MiB free, but ranks need 16 MiB of shared memory"),
    ],
)
def test_a_machine_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, shared: int, message: str
) -> None:
    def usage(path: Path) -> Usage:
        return Usage(
            1 << 40,
            0,
            shared if Path(path) == plan.SHARED_MEMORY else free,
        )

    monkeypatch.setattr(plan.shutil, "disk_usage", usage)
    with pytest.raises(UsageError, match=message):
        check_machine(
            toy_recipe(tmp_path / "run"),
            ONE,
            [nn.Linear(1000, 100)],
        )
    assert not (tmp_path / "run").exists()


def test_too_few_open_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.os, "sysconf", lambda name: 20)
    with pytest.raises(UsageError, match=r"may open 20 files .* `ulimit -n 4096`"):
        check_machine(toy_recipe(tmp_path), ONE, [])
    monkeypatch.undo()
    check_machine(toy_recipe(tmp_path), ONE, [nn.Linear(10, 10)])
