"""The GPU path on fake CUDA tensors, one JSON line per case; tests/test_gpu_path.py starts it.

python tests/helpers/gpu_steps.py      in a process of its own: see helpers/fake_cuda.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

# The tests' folder comes first, so that the fake is in place before anything imports CUDA's parts.
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
]

from helpers import fake_cuda  # noqa: E402, I001

import torch  # noqa: E402

from colorgan.color import denormalise_lab_B3HW, lab_to_rgb_B3HW, rgb_to_lab_B3HW  # noqa: E402
from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe  # noqa: E402
from colorgan.data import Boxes  # noqa: E402
from colorgan.distributed.ranks import Ranks  # noqa: E402
from colorgan.evaluation.downstream import TASKS  # noqa: E402
from colorgan.evaluation.generator_scores import score_coloring  # noqa: E402
from colorgan.evaluation.losses import LossSettings  # noqa: E402
from colorgan.evaluation.predictions import predictions  # noqa: E402
from colorgan.models.modes import dropout_keys, set_dropout_keys  # noqa: E402
from colorgan.tasks import colorization, transfer  # noqa: E402
from colorgan.training.loop import Hooks, Intervals, Meter, StopSignals, fit  # noqa: E402
from helpers.small_models import small_model  # noqa: E402

CUDA = torch.device("cuda", 0)
GPU = Ranks(0, 1, CUDA)
SIZE = 64
# Real tensors, made outside the fake mode: their values are used on the CPU.
POSITIONS = {number: torch.arange(number) for number in (2, 4, 16)}
PRETRAIN: dict[str, dict[str, Any]] = {
    "pretrain fp32": {"precision": "fp32"},
    "pretrain bf16": {"precision": "bf16"},
    "pretrain bf16 channels_last": {"precision": "bf16", "channels_last": True},
    "pretrain accumulated": {"precision": "bf16", "micro_batch_size": 2},
}


def ignored(*args: Any, **kwargs: Any) -> None:
    """Take anything, do nothing."""


def batch_of(number: int, **labels: Any) -> Any:
    """Return a micro-batch on the fake device, its positions on the CPU as from the loader."""
    return SimpleNamespace(
        lab_B3HW=torch.empty(number, 3, SIZE, SIZE, device=CUDA),
        positions_B=POSITIONS[number],
        sample_ids_B=POSITIONS[number],
        **labels,
    )


class OneBatch:
    """A loader that yields the same micro-batches for ever."""

    wait_s = 0.0

    def __init__(self, micro_batches: list[Any]) -> None:
        self._micro_batches = micro_batches

    def train_batches(self, images_seen: int) -> Iterator[list[Any]]:
        """Yield them."""
        while True:
            yield self._micro_batches


def without_values() -> Any:
    """Skip what needs values: seeded weights, and the means that are logged."""
    return mock.patch.multiple(Meter, flush=lambda self, ranks: {})


def steps(task: Any, strategy: Any, micro_batches: list[Any], number: int = 1) -> fake_cuda.Work:
    """Run `fit` for so many steps, with gradients filled in place of a backward pass."""
    size = sum(len(batch.positions_B) for batch in micro_batches)

    with (
        mock.patch.object(
            type(strategy),
            "backward",
            lambda self, phase, loss: fake_cuda.fill_gradients(phase.module),
        ),
        without_values(),
        fake_cuda.Work() as work,
    ):
        loader: Any = OneBatch(micro_batches)
        hooks = Hooks(ignored, ignored, ignored)
        fit(
            task,
            strategy,
            loader,
            Intervals(number * size, size, 0),
            hooks,
            StopSignals(),
        )

    return work


def pretraining(batch: dict[str, Any]) -> dict[str, Any]:
    """Take steps of both turns with clipping and EMA; the first one makes the optimizers' state."""
    recipe = PretrainRecipe.model_validate(
        {
            "network": {"image_size": SIZE, "width": 8},
            "discriminator": {"width": 8, "num_strided_blocks": 2},
            "optimizer": {"gradient_clip_norm": 1.0},
            "ema_half_life_images": 100,
            "batch": {"global_batch_size": 4, **batch},
        }
    )
    # Fake tensors have no values that could be seeded.
    with mock.patch.object(colorization, "initialise", ignored):
        task, strategy = colorization.build_pretraining(recipe, GPU, 1000)
    # Also several micro-batches: accumulation takes another path.
    micro = recipe.batch.micro_batch_size or 4
    micro_batches = [batch_of(micro) for _ in range(4 // micro)]
    # Not counted: the first step also makes the optimizers' state.
    steps(task, strategy, micro_batches)
    work = steps(task, strategy, micro_batches)

    states = [
        value
        for phase in task.phases
        for slots in phase.optimizer.state.values()
        for value in slots.values()
    ]
    return summary(
        work,
        devices=sorted({value.device.type for value in states}),
    )


def labels_of(kind: str, number: int) -> dict[str, Any]:
    """Return a task's labels as the loader gives them."""
    # Boxes stay on the CPU, as the loader gives them.
    flags = torch.zeros(2, dtype=torch.bool)
    boxes = Boxes(
        torch.rand(2, 4),
        torch.zeros(2, dtype=torch.int64),
        flags,
        flags,
        torch.ones(2),
        (SIZE, SIZE),
    )

    return {
        "classify": {"classes_BC": torch.empty(number, 3, device=CUDA)},
        "segment": {"mask_BHW": torch.empty(number, SIZE, SIZE, dtype=torch.int64, device=CUDA)},
        "detect": {"boxes": [boxes] * number},
    }[kind]


def finetuning(name: str, number: int = 16) -> dict[str, Any]:
    """Take a step of a downstream task, and count its loss alone."""
    task = TASKS[name]  # type: ignore[index]
    recipe = FinetuneRecipe.model_validate(
        {"task": name, "batch": {"global_batch_size": number, "precision": "bf16"}}
    )
    model = small_model(task.kind, SIZE).to(CUDA).train()
    stage = transfer.Stage(recipe.stages[0], 0, 1000)
    learned = transfer.build_stage(model, recipe, stage)
    strategy = transfer.stage_strategy(recipe, GPU, learned)

    batch = batch_of(number, **labels_of(name, number))
    set_dropout_keys(model, dropout_keys(0, batch.positions_B))
    outputs = model(batch.lab_B3HW[:, :1]).float()
    # Apart: the loss must not wait for the device, whatever the network does.
    with fake_cuda.Work() as loss_work:
        loss = task.loss(outputs, batch, LossSettings(recipe.void))
    assert loss.device.type == "cuda"
    assert loss.dtype == torch.float32

    work = steps(learned, strategy, [batch])
    return {
        **summary(work),
        "loss_operators": loss_work.operators,
        "loss_waits": dict(loss_work.waits),
    }


def model_of(kind: str) -> torch.nn.Module:
    """Return a small network of a kind on the fake device, in evaluation mode."""
    return small_model(kind, SIZE).to(CUDA)


def evaluating_generator(number: int = 4) -> dict[str, Any]:
    """Color and score a batch, as validation and evaluation do."""
    model, batch = model_of("generator"), batch_of(number)
    with fake_cuda.Work() as work:
        scores = score_coloring(model, [batch], ab_scale=128.0)
    return summary(work, rows=len(scores.rows))


def predicting(kind: str, number: int = 4) -> dict[str, Any]:
    """Run a downstream model on a batch as evaluation does; its outputs stay on the device."""
    model, batch = model_of(kind), batch_of(number)
    with fake_cuda.Work() as work, torch.no_grad():
        found = list(predictions(model, [batch], seed=0))
    return summary(work, devices=[outputs.device.type for _, outputs in found])


def colors() -> dict[str, Any]:
    """Convert sRGB to Lab and back on the device."""
    with fake_cuda.Work() as work:
        lab_B3HW = rgb_to_lab_B3HW(torch.empty(2, 3, SIZE, SIZE, device=CUDA))
        rgb_B3HW = lab_to_rgb_B3HW(denormalise_lab_B3HW(lab_B3HW))
    return summary(work, devices=[rgb_B3HW.device.type])


def mixing() -> dict[str, Any]:
    """Check the fake itself: a CPU tensor among CUDA ones must raise."""
    try:
        torch.empty(3, device=CUDA) + torch.empty(3)
    except RuntimeError as error:
        return {"raised": str(error).splitlines()[0]}
    return {"raised": ""}


def summary(work: fake_cuda.Work, **values: Any) -> dict[str, Any]:
    """Return what is asserted about a case."""
    return {"operators": work.operators, "waits": dict(work.waits), **values}


def cases() -> dict[str, Callable[[], dict[str, Any]]]:
    """Every case by its name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "mixing": mixing,
        "colors": colors,
        "evaluate generator": evaluating_generator,
    }
    for name, batch in PRETRAIN.items():
        # Bound now: a plain closure would see the last batch in every case.
        found[name] = lambda batch=batch: pretraining(batch)  # type: ignore[misc]
    for name in TASKS:
        kind = TASKS[name].kind
        found[f"evaluate {kind}"] = lambda kind=kind: predicting(kind)  # type: ignore[misc]
        found[f"finetune {name}"] = lambda name=name: finetuning(name)  # type: ignore[misc]
    return found


if __name__ == "__main__":
    for case, run in cases().items():
        # Each case by itself, so that one that raises is known by the last line.
        with fake_cuda.MODE:
            print(json.dumps({"case": case, **run()}), flush=True)
