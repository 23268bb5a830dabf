"""launcher/evaluate.py's work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.data import (
    MAX_PIXELS_LIMIT,
    Loader,
    ShardSet,
    Targets,
    decode_upright,
    open_set,
    open_whole_set,
)
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.generator_scores import (
    mean_scores,
    save_best_and_worst,
    save_grid,
    score_coloring,
    score_photos,
    scores_table,
)
from colorgan.evaluation.metrics import SSIM_WINDOW_PX
from colorgan.evaluation.record import Evaluation, write_evaluation
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.evaluation.task_scores import score_model, scores_text
from colorgan.models.model_folder import ModelConfig, check_inference, load_model
from colorgan.models.modes import set_inference

TARGETS: dict[str, Targets] = {
    "generator": "none",
    "classifier": "classes",
    "segmenter": "mask",
    "detector": "boxes",
}


def evaluate(settings: EvaluateSettings, ranks: Ranks) -> None:
    """Load, score, print and write. Called on all ranks."""
    ranks.on_all_ranks(lambda: check_out(settings.out) if ranks.main else None)
    model, config = ranks.on_all_ranks(lambda: load_model(settings.model, *TARGETS))
    config = config.model_copy(update={"inference": settings.inference or config.inference})
    set_inference(model, config.inference)
    model.to(ranks.device)
    shards = open_set(settings.data, settings.cache_dir, settings.cache_gb, ranks)
    check_data(settings, config, shards)
    with open_whole_set(
        shards,
        ranks,
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
        batch_size=settings.batch_size,
        targets=TARGETS[config.kind],
    ) as loader:
        evaluation, text = score(settings, model, config, loader, ranks)
    if ranks.main:
        print(text)
        if settings.out is not None:
            write_evaluation(settings.out, evaluation, about(settings, config))


def check_out(out: Path | None) -> None:
    """Make the folder and try to write in it, before long work."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass


def check_data(settings: EvaluateSettings, config: ModelConfig, shards: ShardSet) -> None:
    """Refuse a set that the model cannot be scored on as asked."""
    if config.classes and shards.classes != config.classes:
        raise UsageError(
            f"{settings.data[0]} has {len(shards.classes)} classes, {settings.model} was trained on "
            f"{len(config.classes)} others: score it on a set of the same corpus"
        )
    check_inference(settings.inference, config.architecture, settings.model)
    if settings.own_size and (
        config.kind != "generator" or set(shards.image_policies) != {"original"}
    ):
        raise UsageError(
            f"--own_size scores a generator on sets packed with --image original; {settings.model} is a {config.kind} "
            f"and {settings.data[0]} was packed as {shards.image_policies[0]}"
        )


def score(
    settings: EvaluateSettings, model: nn.Module, config: ModelConfig, loader: Loader, ranks: Ranks
) -> tuple[Evaluation, str]:
    """Return the scores and a line that tells them. Called on all ranks."""
    num_pictures = settings.num_pictures
    if config.kind != "generator":
        batches = loader.eval_batches()
        evaluation = score_model(
            model, config, batches, ranks, seed=settings.seed, num_pictures=num_pictures
        )
        return evaluation, scores_text(config, evaluation.scores)
    scores, text = score_generator(settings, model, config, loader, ranks)
    return Evaluation(scores), text


def score_generator(
    settings: EvaluateSettings,
    generator: nn.Module,
    config: ModelConfig,
    loader: Loader,
    ranks: Ranks,
) -> tuple[dict[str, float], str]:
    """Score at the network's size and, where asked, at each photo's own; save the pictures. Called on all ranks.

    `best.png` and `worst.png` are of the last of the two.
    """
    size, shown = config.architecture.image_size, settings.num_pictures
    common: dict[str, Any] = {
        "ab_scale": config.ab_scale,
        "seed": settings.seed,
        "num_ranked": shown,
    }
    colored = score_coloring(
        generator, loader.eval_batches(), num_pictures=shown if ranks.main else 0, **common
    )
    scores = mean_scores(colored, ranks)
    counted = f"{scores['images']:.0f} held-out pictures, {config.inference} inference"
    text = f"{counted}, at {size}x{size}:\n{scores_table(scores)}"
    if ranks.main and settings.out is not None:
        save_grid(settings.out / "coloured.png", colored)
    if settings.own_size:
        colored = score_photos(generator, own_size_photos(loader, ranks), image_size=size, **common)
        own = mean_scores(colored, ranks)
        scores |= {f"{name}_own_size": value for name, value in own.items()}
        text += f"\n\n{own['images']:.0f} of them at their own sizes:\n{scores_table(own)}"
    if settings.out is not None:
        save_best_and_worst(settings.out, colored, ranks)
    return scores, text


def own_size_photos(loader: Loader, ranks: Ranks) -> Iterator[tuple[int, Tensor]]:
    """This rank's photos as they were packed: number, and uint8 sRGB on the rank's device; none too small for SSIM."""
    for batch in loader.eval_batches():
        for sample_id, jpeg in zip(
            batch.sample_ids_B.tolist(), batch.stored_jpegs or (), strict=True
        ):
            photo_HW3 = torch.from_numpy(decode_upright(jpeg, MAX_PIXELS_LIMIT).copy())
            if min(photo_HW3.shape[:2]) >= SSIM_WINDOW_PX:
                yield sample_id, photo_HW3.permute(2, 0, 1).to(ranks.device)


def about(settings: EvaluateSettings, config: ModelConfig) -> dict[str, Any]:
    """Return what the scores were computed with."""
    return {
        "model": str(settings.model),
        "data": [str(folder) for folder in settings.data],
        "kind": config.kind,
        "inference": config.inference,
        "images_seen": config.images_seen,
        "classes": config.classes,
    }
