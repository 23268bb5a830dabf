"""What only a GPU can say, by the code that CPUs run too.

`pytest -m gpu` on a machine with one. A test that takes `device` runs on the CPU in every suite, so
that it cannot rot where no GPU is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.commands import LAUNCHER, TINY, command_line
from helpers.small_models import small_model
from helpers.toy import ToyLoader, toy_recipe, train_toy
from torch import Tensor

from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.data import open_set, open_set_loader
from colorgan.distributed.ranks import Ranks
from colorgan.doctor import checks
from colorgan.evaluation.predictions import predictions
from colorgan.models.colorizing import color_photo

GPU = pytest.mark.gpu
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
SIZE = 32


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Compare IEEE float32 with IEEE float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def ranks_on(device: str) -> Ranks:
    return dataclasses.replace(Ranks.single(), device=torch.device(device))


def trained(device: str, folder: Path) -> dict[str, Tensor]:
    """Return the generator and its average after three steps of SGD in two micro-batches."""
    recipe = toy_recipe(folder, ema_half_life_images=20)
    _, strategy, _ = train_toy(recipe, ranks_on(device), num_steps=3, micro_batch_size=4, sgd=True)
    return {
        f"{name}, {'average' if average else 'weights'}": tensor.cpu()
        for average in (False, True)
        for name, tensor in strategy.evaluated("generator", ema=average).state_dict().items()
    }


@on_each_device
def test_training_and_its_average_are_the_cpus(device: str, tmp_path: Path) -> None:
    expected, found = trained("cpu", tmp_path / "cpu"), trained(device, tmp_path / "device")

    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@on_each_device
@pytest.mark.parametrize("kind", ["generator", "classifier", "segmenter", "detector"])
def test_every_kind_of_model_predicts_what_it_does_on_the_cpu(device: str, kind: str) -> None:
    outputs = []
    for where in ("cpu", device):
        loader = ToyLoader(4, 4, device=where)
        with torch.inference_mode():
            (found,) = predictions(small_model(kind, SIZE).to(where), loader.eval_batches(), seed=0)
        outputs.append(found[1].cpu())

    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)


@on_each_device
def test_a_photo_that_is_far_larger_than_the_network_is_colored(device: str) -> None:
    """Wider than any antialiased resize of CUDA takes at this size."""
    drawn = torch.Generator().manual_seed(0)
    photo_3HW = torch.randint(0, 256, (3, 96, 8192), dtype=torch.uint8, generator=drawn)
    colored = [
        color_photo(
            small_model("generator", SIZE).to(where), photo_3HW, image_size=SIZE, ab_scale=128.0
        )[1]
        for where in ("cpu", device)
    ]

    assert colored[1].shape == photo_3HW.shape
    assert (colored[1].cpu() - colored[0]).abs().max() < 2e-3


@contextmanager
def batches_on(device: str, folder: Path) -> Iterator[Iterator[list[torch.Tensor]]]:
    ranks = ranks_on(device)
    loader = open_set_loader(
        open_set([folder], None, 0.0, ranks),
        ranks,
        image_size=SIZE,
        ab_scale=128.0,
        batch_size=8,
        targets="none",
        random_crop_min_area=0.5,
        flip=True,
    )
    try:
        yield ([each.lab_B3HW.cpu() for each in step] for step in loader.train_batches(0))
    finally:
        loader.close()


@on_each_device
def test_the_loader_gives_the_cpus_pictures(device: str, packed: dict[str, Path]) -> None:
    """Three epochs, so that every buffer is used again while copies of it may be under way."""
    with (
        batches_on("cpu", packed["train"]) as expected,
        batches_on(device, packed["train"]) as ours,
    ):
        for _, theirs, mine in zip(range(15), expected, ours, strict=False):
            difference = (torch.cat(mine) - torch.cat(theirs)).abs().flatten()
            # nvJPEG's inverse transform differs by some levels in single pixels.
            assert difference.quantile(0.5) < 0.004
            assert difference.quantile(0.99) < 0.03


@GPU
def test_the_doctor_finds_nothing_broken(packed: dict[str, Path], tmp_path: Path) -> None:
    """Decoding, NCCL among all GPUs, an error on one rank, resuming, DeepSpeed, the loader."""
    bench = checks.Bench(
        packed["train"],
        image_size=SIZE,
        on_cpu=False,
        world_size=torch.cuda.device_count(),
        timeout_s=180,
    )
    found = [
        checks.check_decoding(bench),
        checks.check_all_reduce(bench),
        checks.check_error_on_one_rank(bench),
        checks.check_resume(bench, tmp_path),
        checks.check_deepspeed(bench),
        checks.check_loader(bench, batch=8, seconds=1.0),
    ]

    assert [each for each in found if each.verdict == "broken"] == []


@GPU
def test_a_generator_of_bf16_training_is_consolidated_and_scored(
    packed: dict[str, Path], tmp_path: Path
) -> None:
    """Consolidation compares the outputs of what it has written with those of the run."""
    data = ["--data.train", packed["train"], "--data.val", packed["val"]]
    fast = ["--batch.precision", "bf16", "--batch.channels_last", "true"]
    run, generator = tmp_path / "run", tmp_path / "generator"
    for words in (
        ("pretrain", *data, *TINY, *fast, "--run", run, "--images", 64),
        ("consolidate", "--run", run, "--out", generator),
        ("evaluate", "--model", generator, "--data", packed["val"], "--out", tmp_path / "scores"),
    ):
        done = command_line("python", LAUNCHER / f"{words[0]}.py", *words[1:])
        assert done.returncode == 0, done.stdout + done.stderr


@GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_does(packed: dict[str, Path], tmp_path: Path) -> None:
    final = []
    for number in (1, 2):
        run = tmp_path / f"run{number}"
        words = ["pretrain", "--nproc", number, "--data.train", packed["train"], *TINY]
        done = command_line("colorgan", *words, "--run", run, "--images", 64)
        assert done.returncode == 0, done.stdout + done.stderr
        final.append(open_checkpoint(run / "checkpoints" / f"images-{64:012d}"))

    for name, tensor in final[0].tensors("generator").items():
        torch.testing.assert_close(
            final[1].tensors("generator")[name], tensor, rtol=0.02, atol=0.01
        )
