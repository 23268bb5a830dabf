"""Score a model folder on a packed set: the work of launcher/evaluate.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.data import (
    MAX_PIXELS_LIMIT,
    Loader,
    ShardSet,
    Targets,
    check_labels,
    decode_upright,
    open_set,
    open_whole_set,
)
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.downstream import (
    TASKS,
    evaluate_model,
    scores_text,
    task_of_kind,
    undefined_text,
)
from colorgan.evaluation.generator_scores import (
    mean_scores,
    save_best_and_worst,
    save_pictures,
    score_coloring,
    score_photos,
    scores_table,
)
from colorgan.evaluation.metrics import SSIM_WINDOW_PX
from colorgan.evaluation.reconstruction_scores import reconstruction_text, score_reconstruction
from colorgan.evaluation.record import (
    SCORES,
    Evaluation,
    SavedEvaluation,
    check_replaced,
    write_evaluation,
)
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.files import replacing_folder
from colorgan.models.model_config import (
    ModelConfig,
    check_inference,
    check_norms,
    read_config,
    weights_digest,
)
from colorgan.models.model_folder import load_model
from colorgan.models.modes import set_inference

KINDS = ("generator", *(task.kind for task in TASKS.values()))


@dataclass(frozen=True)
class _Subject:
    """A loaded model and how it is scored."""

    settings: EvaluateSettings
    model: nn.Module
    config: ModelConfig
    ranks: Ranks


def evaluate(settings: EvaluateSettings, ranks: Ranks) -> None:
    """Load, score, print and write. Called on all ranks.

    Raises:
        UsageError: The set cannot score the model as asked.
        ModelFolderError: `model` is not a generator's or fine-tuned model's folder.
    """
    # Before the scoring: a folder that cannot be written would lose hours of it.
    ranks.on_all_ranks(lambda: _check_out(settings) if ranks.main else None)
    with _output(settings.out, ranks) as out:
        evaluation, text, config = score_folder(settings.model_copy(update={"out": out}), ranks)
        if ranks.main and out is not None:
            write_evaluation(out, evaluation, _about(settings, config))
    if ranks.main:
        print(text)


def score_folder(settings: EvaluateSettings, ranks: Ranks) -> tuple[Evaluation, str, ModelConfig]:
    """Load a model and score it; return the scores, as text too, and the model's config.

    Called on all ranks.

    Raises:
        UsageError: The set cannot score the model as asked.
        ModelFolderError: `model` is not a generator's or fine-tuned model's folder.
    """
    model, config = ranks.on_all_ranks(lambda: load_model(settings.model, *KINDS))
    # Into the config: the record then says what was really used.
    config = config.model_copy(update={"inference": settings.inference or config.inference})
    set_inference(model, config.inference)
    model.to(ranks.device)

    shards = open_set(settings.data, settings.cache_dir, settings.cache_gb, ranks)
    check_data(settings, config, shards)
    check_labels(shards, _targets(config), ranks)
    subject = _Subject(settings, model, config, ranks)
    with open_whole_set(
        shards,
        ranks,
        image_size=config.picture_size,
        fit=config.fit,
        ab_scale=config.ab_scale,
        batch_size=settings.batch_size,
        targets=_targets(config),
    ) as loader:
        return *_score(subject, loader), config


def _check_out(settings: EvaluateSettings) -> None:
    """Find out before long work whether the folder may be written, and can be."""
    out = settings.out
    if out is None:
        return

    check_replaced(out, read_config(settings.model).kind)
    out.mkdir(parents=True, exist_ok=True)
    # Tried, not asked: permissions and full disks answer only to a write.
    with tempfile.TemporaryFile(dir=out):
        pass
    if (out / SCORES).is_file():
        print(f"{out} holds an older evaluation, which is replaced at the end", flush=True)


@contextmanager
def _output(out: Path | None, ranks: Ranks) -> Iterator[Path | None]:
    """Yield where to write; on rank 0 it takes the place of `out` at the end."""
    if out is None or not ranks.main:
        yield out
        return
    with replacing_folder(out) as folder:
        yield folder


def _targets(config: ModelConfig) -> Targets:
    return "none" if config.kind == "generator" else task_of_kind(config.kind).targets


def check_data(settings: EvaluateSettings, config: ModelConfig, shards: ShardSet) -> None:
    """Refuse a set that the model cannot be scored on as asked.

    Raises:
        UsageError: The classes differ, or `own_size` or `inference` does not fit.
    """
    # Outputs are numbered by the training set's classes.
    if config.classes and shards.classes != config.classes:
        raise UsageError(
            f"{settings.data[0]} has {len(shards.classes)} classes, {settings.model} was trained "
            f"on {len(config.classes)} others: score it on a set of the same corpus"
        )
    check_inference(settings.inference, config.architecture, settings.model)
    if config.inference == "paper":
        check_norms(config, 1)  # the last batch may be one image

    is_original = set(shards.image_policies) == {"original"}
    colors = config.kind == "generator" and config.target != "luminance"
    if settings.own_size and not (colors and is_original):
        raise UsageError(
            "--own_size scores a generator of color on sets packed with --image original; "
            f"{settings.model} is a {config.kind} and {settings.data[0]} was packed as "
            f"{shards.image_policies[0]}"
        )


def _score(subject: _Subject, loader: Loader) -> tuple[Evaluation, str]:
    """Return the scores, and as text. Called on all ranks."""
    if subject.config.kind == "generator":
        return _score_generator(subject, loader)

    evaluation = evaluate_model(
        subject.model,
        subject.config,
        loader.eval_batches(),
        subject.ranks,
        seed=subject.settings.seed,
        num_pictures=subject.settings.num_pictures,
    )
    lines = [scores_text(subject.config, evaluation.scores), undefined_text(evaluation)]
    return evaluation, "\n".join(line for line in lines if line)


def _score_generator(subject: _Subject, loader: Loader) -> tuple[Evaluation, str]:
    """Score at the network's size and, where asked, at each photo's own; save pictures.

    Called on all ranks.

    `best` and `worst` show the last of the two.
    """
    settings, config, ranks = subject.settings, subject.config, subject.ranks
    if config.target == "luminance":
        scores = score_reconstruction(
            subject.model, loader.eval_batches(), ranks, seed=settings.seed
        )
        return Evaluation(SavedEvaluation(scores=scores)), reconstruction_text(scores)

    size, shown = config.architecture.image_size, settings.num_pictures
    common: dict[str, Any] = {
        "ab_scale": config.ab_scale,
        "seed": settings.seed,
        "num_ranked": shown,
    }

    colored = score_coloring(
        subject.model, loader.eval_batches(), num_pictures=shown if ranks.main else 0, **common
    )
    scores = mean_scores(colored, ranks)
    counted = f"{scores['images']:.0f} held-out images, {config.inference} inference"
    text = f"{counted}, at {size}x{size}:\n{scores_table(scores)}"
    if ranks.main and settings.out is not None:
        save_pictures(settings.out / "coloured.png", colored.first)

    # A second pass in the photos' own pixels, where the paper's tables are at the network's size.
    if settings.own_size:
        photos = _own_size_photos(loader)
        colored = score_photos(subject.model, photos, image_size=size, **common)
        own = mean_scores(colored, ranks)
        scores |= {f"{name}_own_size": value for name, value in own.items()}
        text += f"\n\n{own['images']:.0f} of them at their own sizes:\n{scores_table(own)}"

    if settings.out is not None:
        save_best_and_worst(settings.out, colored, ranks)
    return Evaluation(SavedEvaluation(scores=scores)), text


def _own_size_photos(loader: Loader) -> Iterator[tuple[int, Tensor]]:
    """Return this rank's photos as packed: number in the set and uint8 sRGB 3HW.

    Those too small for SSIM are left out.
    """
    for batch in loader.eval_batches():
        jpegs = batch.stored_jpegs or ()
        for sample_id, jpeg in zip(batch.sample_ids_B.tolist(), jpegs, strict=True):
            photo_HW3 = torch.from_numpy(decode_upright(jpeg, MAX_PIXELS_LIMIT).copy())
            if min(photo_HW3.shape[:2]) >= SSIM_WINDOW_PX:
                yield sample_id, photo_HW3.permute(2, 0, 1)


def _about(settings: EvaluateSettings, config: ModelConfig) -> dict[str, Any]:
    """Return what the scores were computed with."""
    return {
        "model": str(settings.model),
        "weights_sha256": weights_digest(settings.model),
        "data": [str(folder) for folder in settings.data],
        "kind": config.kind,
        "inference": config.inference,
        "images_seen": config.images_seen,
        "classes": config.classes,
    }
