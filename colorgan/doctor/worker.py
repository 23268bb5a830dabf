"""One job of the doctor in its own process: a crash, a hang or a full GPU ends the job alone.

    python -m colorgan.doctor.worker JOB '{"key": value}'      prints one JSON line per result

`colorgan/doctor/jobs.py` starts it. The jobs use the product itself: its loader, its networks, its
strategies, its checkpoints.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from colorgan.checkpoints.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_path,
    open_checkpoint,
)
from colorgan.color import normalise_lab_B3HW, rgb_to_lab_B3HW
from colorgan.config.command import run_command
from colorgan.config.recipe import PretrainRecipe
from colorgan.data import Batch, ShardError, ShardSet, open_loaders, open_set, open_whole_set
from colorgan.distributed.ranks import Ranks, joined_ranks
from colorgan.errors import ColorganError
from colorgan.tasks.colorization import build_networks, build_pretraining
from colorgan.tasks.pretraining import pretrain
from colorgan.training.loop import Hooks, Intervals, StepReport, StopSignals, fit
from colorgan.training.work import step_flops

JOB_TIMEOUT_S = 60
FAILURE = "a failure made on purpose on rank 1"


def emit(**values: Any) -> None:
    """Print one result for the parent process."""
    print(json.dumps(values), flush=True)


def recipe_of(data: str, **keys: Any) -> PretrainRecipe:
    """Return a small recipe on a packed folder; `keys` are groups of the recipe."""
    groups = {"data": {"train": [data]}, "launch": {"timeout_s": JOB_TIMEOUT_S}, **keys}
    return PretrainRecipe.model_validate(groups)


def open_train(recipe: PretrainRecipe, ranks: Ranks) -> ShardSet:
    """Open the recipe's training set."""
    return open_set(recipe.data.train, *recipe.data.cache, ranks)


def job_decode(ranks: Ranks, data: str, image_size: int) -> None:
    """Compare what the device's decoder gives with Pillow and float arithmetic, image by image."""
    recipe = recipe_of(data)
    shards = open_train(recipe, ranks)
    opened = open_whole_set(
        shards,
        ranks,
        image_size=image_size,
        ab_scale=recipe.network.ab_scale,
        batch_size=8,
        targets="none",
    )
    differences = []
    with opened as loader:
        # 32 images: decoders differ everywhere or nowhere.
        for batch in itertools.islice(loader.eval_batches(), 4):
            for lab_3HW, jpeg in zip(batch.lab_B3HW.cpu(), batch.stored_jpegs or (), strict=True):
                reference_3HW = _reference_lab(jpeg, image_size, recipe.network.ab_scale)
                differences.append(lab_3HW - reference_3HW)

    differences_N3HW = torch.stack(differences)
    median, high = np.quantile(differences_N3HW.abs().numpy(), [0.5, 0.999]).tolist()
    # Rounding goes both ways and leaves the means; the largest of the three planes' shifts counts.
    shift = float(differences_N3HW.mean(dim=(0, 2, 3)).abs().max())
    emit(images=len(differences), median=median, high=high, shift=shift)


def _reference_lab(jpeg: bytes, image_size: int, ab_scale: float) -> torch.Tensor:
    """Decode with Pillow; the doctor's images are packed at `image_size`, so nothing is resized."""
    with tempfile.SpooledTemporaryFile() as file:
        file.write(jpeg)
        pixels = np.asarray(Image.open(file).convert("RGB").resize((image_size, image_size)))
    rgb_13HW = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return normalise_lab_B3HW(rgb_to_lab_B3HW(rgb_13HW), ab_scale)[0]


def job_loader(ranks: Ranks, data: str, image_size: int, batch: int, seconds: float) -> None:
    """Measure the loader alone."""
    recipe = recipe_of(data, network={"image_size": image_size}, batch={"global_batch_size": batch})
    shards = open_train(recipe, ranks)
    with open_loaders(recipe, ranks, shards, None, micro_batch_size=batch) as loaders:
        batches = loaders.train.train_batches(0)
        next(batches)
        began = time.perf_counter()
        count = 0
        while time.perf_counter() - began < seconds:
            next(batches)
            count += 1
        _wait_for(ranks.device)
        emit(images_per_s=batch * count / (time.perf_counter() - began))


class RepeatedBatch:
    """A loader that yields the same global batch forever: the step alone is measured."""

    wait_s = 0.0

    def __init__(self, micro_batches: Sequence[Batch]) -> None:
        self._micro_batches = micro_batches

    def train_batches(self, images_seen: int) -> Iterator[Sequence[Batch]]:
        """Yield the batch without end."""
        return itertools.repeat(self._micro_batches)


def job_steps(
    ranks: Ranks, data: str, network: dict[str, Any], settings: list[dict[str, Any]], seconds: float
) -> None:
    """Measure the training step with each of `settings`, groups of the recipe's `batch`."""
    for batch in settings:
        recipe = recipe_of(
            data, network=network, discriminator={"width": network["width"]}, batch=batch
        )
        if ranks.device.type == "cuda":
            # Here, after the error of a setting that did not fit has let go of its networks: what
            # it reserved would be missing to the next.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            rate, gflop = _images_per_s(recipe, ranks, seconds)
        # A finding, not a failure: the next setting may fit.
        except torch.OutOfMemoryError:
            if ranks.main:
                emit(**batch, images_per_s=None, problem="out of memory")
            continue
        memory = torch.cuda.max_memory_allocated() / 2**30 if ranks.device.type == "cuda" else None
        if ranks.main:
            emit(**batch, images_per_s=rate, gflop=gflop, memory_gib=memory)


def _images_per_s(recipe: PretrainRecipe, ranks: Ranks, seconds: float) -> tuple[float, float]:
    """Train on one repeated batch for about `seconds`.

    Returns:
        Images/s after two warm-up steps, and the GFLOP of an image's step.
    """
    size = recipe.batch.global_batch_size
    shards = open_train(recipe, ranks)
    micro_batch_size = size // ranks.world_size
    opened = open_loaders(recipe, ranks, shards, None, micro_batch_size=micro_batch_size)
    with opened as loaders:
        micro_batches = next(iter(loaders.train.train_batches(0)))

    networks = build_networks(recipe, ranks)
    flops = step_flops(networks, recipe.network.image_size, micro_batch_size)
    task, strategy = build_pretraining(recipe, ranks, size * 10_000, networks)
    loader: Any = RepeatedBatch(micro_batches)
    reports: list[StepReport] = []
    hooks = Hooks(reports.append, lambda images_seen: None, lambda images_seen: None)

    def train(first: int, steps: int) -> float:
        intervals = Intervals((first + steps) * size, size, steps * size)
        began = time.perf_counter()
        fit(task, strategy, loader, intervals, hooks, StopSignals(), images_seen=first * size)
        _wait_for(ranks.device)
        return time.perf_counter() - began

    # Two steps in which kernels are chosen and memory is reserved.
    warm_up = train(0, 2)
    # All ranks must take the same number of steps.
    steps = max(ranks.gather(max(2, round(seconds / max(warm_up / 2, 1e-4)))))
    return steps * size / train(2, steps), flops / 1e9


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def job_resume(ranks: Ranks, data: str, folder: str, batch: dict[str, Any]) -> None:
    """Train one run at a stretch and one with a stop; compare their last checkpoints."""
    finals = [
        _small_run(ranks, data, Path(folder) / name, batch, stops)
        for name, stops in (("whole", (48,)), ("stopped", (24, 48)))
    ]
    emit(difference=largest_difference(*finals))


def _small_run(
    ranks: Ranks, data: str, run: Path, batch: dict[str, Any], stops: tuple[int, ...]
) -> Checkpoint:
    """Train up to each of `stops` images, each time from the run's last checkpoint."""
    recipe = recipe_of(
        data,
        run=run,
        network={"image_size": 32, "width": 8},
        discriminator={"width": 8, "num_strided_blocks": 2},
        batch={"global_batch_size": 8, **batch},
        # In the foreground, so that the checkpoint is there when the call returns.
        output={"background_save": False, "num_pictures": 0},
        ema_half_life_images=32,
    )
    shards = open_train(recipe, ranks)
    for images in stops:
        with open_loaders(recipe, ranks, shards, None, micro_batch_size=8) as loaders:
            pretrain(
                recipe,
                ranks,
                total_images=images,
                data_digest=shards.digest,
                train=loaders.train,
                val=None,
            )
    return open_checkpoint(checkpoint_path(run / CHECKPOINTS, stops[-1]))


def largest_difference(first: Checkpoint, second: Checkpoint) -> float:
    """Return the largest difference between any two elements of two checkpoints."""
    largest = 0.0
    for role in first.roles():
        for name in first.shapes(role):
            ours, theirs = first.read(role, name).double(), second.read(role, name).double()
            # An empty tensor has no largest difference.
            if ours.numel():
                largest = max(largest, float((ours - theirs).abs().max()))
    return largest


def job_allreduce(ranks: Ranks, megabytes: int, repeats: int) -> None:
    """Measure an all-reduce of float32 among all ranks, as gradients are shared."""
    values = torch.ones(megabytes * 250_000, device=ranks.device)
    dist.all_reduce(values)
    _wait_for(ranks.device)
    ranks.barrier()

    began = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(values)
    _wait_for(ranks.device)
    seconds = (time.perf_counter() - began) / repeats

    # Ones grow by the number of ranks each time, and stay exact in float32.
    right = bool((values == float(ranks.world_size) ** (repeats + 1)).all())
    if ranks.main:
        emit(gb_per_s=megabytes / 1e3 / seconds, right=right, ranks=ranks.world_size)


def job_fail(ranks: Ranks) -> None:
    """Fail on rank 1 while the others wait for it in a collective call."""
    ranks.barrier()
    if ranks.rank == 1:
        emit(failed_at=time.time())
        raise ColorganError(FAILURE)
    dist.all_reduce(torch.ones(1, device=ranks.device))
    _wait_for(ranks.device)


JOBS: dict[str, Callable[..., None]] = {
    "decode": job_decode,
    "loader": job_loader,
    "steps": job_steps,
    "resume": job_resume,
    "allreduce": job_allreduce,
    "fail": job_fail,
}


def main(argv: list[str]) -> int:
    """Run one job on this rank."""
    name, settings = argv[0], json.loads(argv[1])
    with joined_ranks(timeout_s=JOB_TIMEOUT_S) as ranks:
        JOBS[name](ranks, **settings)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
