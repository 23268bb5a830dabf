"""The generator runs once for both turns: the weights are those of a step that runs it twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import ToyLoader, on_ranks, toy_recipe, train_toy
from torch import Tensor

from colorgan.distributed.launch_profile import LaunchProfile
from colorgan.distributed.ranks import Ranks
from colorgan.models.modes import dropout_keys
from colorgan.tasks.colorization import PretrainTask, build_pretraining
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit
from colorgan.training.memory import activation_bytes, memory_bytes

ONE = Ranks.single()
# Statistics move by one multiplication where two passes take two.
STATISTICS = ("running_mean", "running_var")
CASES: dict[str, dict[str, Any]] = {
    "clip and average": {
        "optimizer": {"gradient_clip_norm": 0.1},
        "ema_half_life_images": 20,
    },
    "bf16 and channels_last": {
        "batch": {"global_batch_size": 8, "precision": "bf16", "channels_last": True},
        "ema_half_life_images": 20,
    },
    "hinge, weights of norms only": {
        "loss": {"gan": "hinge"},
        "optimizer": {"trained": "norms"},
    },
}


class Passes:
    """Counts the generator's passes, and those that keep a graph."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.number = 0
        self.with_graph = 0
        module.register_forward_hook(self._count)

    def _count(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.number += 1
        self.with_graph += output.requires_grad


def share_nothing(*_: Any) -> None:
    """Stand in for `PretrainTask.share`: each turn runs the generator itself."""


def trained(
    folder: Path,
    ranks: Ranks = ONE,
    micro: int = 8,
    **changes: Any,
) -> dict[str, Any]:
    """Return the state after three steps."""
    recipe = toy_recipe(folder, **changes)
    strategy = train_toy(recipe, ranks, num_steps=3, micro_batch_size=micro)[1]
    return {
        f"{role}/{name}": (value if isinstance(value, Tensor) else value.values).clone()
        for role, values in strategy.state().items()
        for name, value in values.items()
    }


def assert_same(
    once: dict[str, Tensor],
    twice: dict[str, Tensor],
) -> None:
    assert once.keys() == twice.keys()

    for name, value in twice.items():
        if name.endswith(STATISTICS):
            torch.testing.assert_close(
                once[name],
                value,
                rtol=1e-5,
                atol=1e-6,
                msg=name,
            )
        else:
            assert torch.equal(once[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_one_pass_trains_as_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    once = trained(tmp_path, **CASES[case])
    monkeypatch.setattr(PretrainTask, "share", share_nothing)
    assert_same(once, trained(tmp_path, **CASES[case]))


@pytest.mark.parametrize(
    ("micro", "number", "with_graph"),
    [(8, 1, 1), (4, 4, 2)],
)
def test_a_step_of_one_micro_batch_runs_the_generator_once(
    tmp_path: Path, micro: int, number: int, with_graph: int
) -> None:
    task, strategy = build_pretraining(toy_recipe(tmp_path), ONE, 8)
    passes = Passes(strategy.phases["generator"].module)
    hooks = Hooks(
        lambda report: None,
        lambda images: None,
        lambda images: None,
    )
    loader: Any = ToyLoader(8, micro)
    fit(
        task,
        strategy,
        loader,
        Intervals(8, 8, 8),
        hooks,
        StopSignals(),
    )

    assert (passes.number, passes.with_graph) == (number, with_graph)


def test_the_shared_pass_has_the_dropout_of_its_images(tmp_path: Path) -> None:
    task, strategy = build_pretraining(toy_recipe(tmp_path), ONE, 8)
    generator = strategy.phases["generator"]
    batch: Any = ToyLoader(8, 8).batch(range(8))
    shared = task.share(batch, strategy.networks(generator))
    expected = dropout_keys(0, batch.positions_B)
    found = [part.keys_B for part in generator.module.modules() if hasattr(part, "keys_B")]

    assert found
    assert all(torch.equal(keys, expected) for keys in found)
    assert shared.output_BCHW.requires_grad


def test_the_plan_counts_the_graph_that_waits(tmp_path: Path) -> None:
    _, strategy = build_pretraining(toy_recipe(tmp_path), ONE, 8)
    cut = memory_bytes(strategy.bare, 32, 8, num_micro_batches=2)["activations"]
    whole = memory_bytes(strategy.bare, 32, 8, num_micro_batches=1)["activations"]
    assert whole - cut == activation_bytes(strategy.bare["discriminator"], 32, 8)


def _both_on_ranks(ranks: Ranks, folder: str) -> None:
    for stage in (0, 2, 3):
        there = replace(ranks, profile=LaunchProfile(stage))
        once = trained(Path(folder), there, 4, **CASES["clip and average"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PretrainTask, "share", share_nothing)
            assert_same(
                once,
                trained(Path(folder), there, 4, **CASES["clip and average"]),
            )


def test_one_pass_trains_as_two_under_every_strategy(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    on_ranks(2, _both_on_ranks, str(tmp_path))
