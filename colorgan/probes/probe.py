"""The work of launcher/probe.py: extract frozen features, judge them, write the scores."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from colorgan.config.progress import images_shown
from colorgan.data import (
    Loader,
    ShardSet,
    count_classes,
    is_remote,
    open_set,
    open_whole_set,
)
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError, UsageError
from colorgan.evaluation.record import (
    EVALUATION,
    Evaluation,
    SavedEvaluation,
    write_evaluation,
)
from colorgan.files import check_output, replacing_folder
from colorgan.models.model_config import ModelConfig, read_config
from colorgan.models.model_folder import build_model, load_model
from colorgan.models.unet import FeaturePyramid, encoder_of
from colorgan.probes.features import Features, extract_features, level_grids, random_encoder
from colorgan.probes.linear import LinearLevel
from colorgan.probes.record import PROBE, write_probe
from colorgan.probes.scikit_learn import check_sklearn
from colorgan.probes.settings import RANDOM, DataSettings, ProbeSettings
from colorgan.probes.softmax import NEEDS_ONE, SoftmaxLevel, single_labels
from colorgan.probes.tables import (
    Probed,
    ProbeKind,
    best_linear_level,
    best_softmax_level,
    plain,
    probe,
    tables,
)

PRINT_EVERY_S = 10.0
# Those for images with any number of classes; softmax needs exactly one.
ALL_KINDS: tuple[ProbeKind, ...] = ("linear", "lowshot", "knn")

T = TypeVar("T")
Shown = Callable[[int], None]


@dataclass(frozen=True)
class Part:
    """The training or test part: its folders, its set and its features."""

    folders: tuple[Path | str, ...]
    shards: ShardSet
    features: Features


def run(settings: ProbeSettings, ranks: Ranks) -> None:
    """Check, extract, probe, print and write. Called on all ranks."""
    ranks.on_all_ranks(lambda: check(settings, ranks))
    # From the disk on every rank: weights are small beside the set.
    encoder, config = ranks.on_all_ranks(lambda: open_encoder(settings))
    encoder.to(ranks.device)
    train_set, test_set = open_sets(settings.data, ranks)
    if settings.protocol == "softmax":
        ranks.on_all_ranks(lambda: check_single_labels(train_set, str(settings.data.train[0])))

    train, test = _parts(settings, encoder, config, (train_set, test_set), ranks)
    probed = _judge(settings, train, test, ranks)
    if ranks.main:
        grids = level_grids(encoder, config.architecture.image_size)
        print(tables(probed, grids, *(len(part.features.sample_ids_N) for part in (train, test))))
        _write_evidence(settings, config, probed, test)
        # Last: where it stands, the probe is complete.
        fields = {**about(settings, config, train, test), **plain(probed, grids)}
        print(f"Written: {write_probe(settings.out, fields)}")


def _parts(
    settings: ProbeSettings,
    encoder: FeaturePyramid,
    config: ModelConfig,
    sets: tuple[ShardSet, ShardSet],
    ranks: Ranks,
) -> tuple[Part, Part]:
    """Return the training and the test part with their features. Called on all ranks."""
    train_set, test_set = sets
    if settings.model == RANDOM:

        def draw(loader: Loader, shown: Shown) -> None:
            random_encoder(encoder, settings.seed, loader, ranks, shown)

        walk(settings, config, train_set, ranks, draw)

    def extract(loader: Loader, shown: Shown) -> Features:
        return extract_features(encoder, loader, ranks, shown)

    train_features = walk(settings, config, train_set, ranks, extract)
    # After training's statistics are in place, for random weights.
    test_features = walk(settings, config, test_set, ranks, extract)
    return (
        Part(settings.data.train, train_set, train_features),
        Part(settings.data.test, test_set, test_features),
    )


def _judge(settings: ProbeSettings, train: Part, test: Part, ranks: Ranks) -> Probed:
    """Return the scores of the protocols asked for; features are shared. Called on all ranks."""
    kinds = ALL_KINDS if settings.protocol == "all" else (settings.protocol,)
    labels = None
    if "softmax" in kinds:
        labels = (
            single_labels(train.features, str(train.folders[0])),
            single_labels(test.features, str(test.folders[0])),
        )
    return probe(
        kinds,
        train.features,
        test.features,
        ranks,
        seed=settings.seed,
        labels=labels,
        shown=printing(ranks),
    )


def _write_evidence(
    settings: ProbeSettings, config: ModelConfig, probed: Probed, test: Part
) -> None:
    """Write what the classifiers of the chosen level say of each test image.

    A study compares arms by it, with an interval over images (colorgan/study/comparison.py).
    """
    linear, softmax = best_linear_level(probed), best_softmax_level(probed)
    classes = test.shards.classes
    if linear is not None:
        evaluation = evidence(probed.linear[linear], test.features, classes)
    elif softmax is not None:
        evaluation = softmax_evidence(probed.softmax[softmax], test.features, classes)
    else:
        return

    about_it = {
        "model": settings.model,
        "data": list(map(str, settings.data.test)),
        "kind": "classifier",
        "images_seen": 0 if settings.model == RANDOM else config.images_seen,
        "classes": list(classes),
    }
    with replacing_folder(settings.out / EVALUATION) as partial:
        write_evaluation(partial, evaluation, about_it)


def evidence(level: LinearLevel, test: Features, classes: Sequence[str]) -> Evaluation:
    """Return a level's scores and its classifiers' values; classes without one are left out."""
    scores_NC = torch.from_numpy(level.decisions_MC)
    trained_C = ~scores_NC.isnan().all(dim=0)
    per_image = {
        "sample_ids_N": test.sample_ids_N,
        "scores_NC": scores_NC[:, trained_C],
        "positives_NC": test.positives_NC[:, trained_C].to(torch.uint8),
        "difficult_NC": test.difficult_NC[:, trained_C].to(torch.uint8),
    }
    scores = {
        "mAP": level.score.mAP,
        "mAP_11_point": level.score.mAP_11_point,
        "images": float(len(test.sample_ids_N)),
        "classes": float(level.score.classes),
    }
    per_class = dict(zip(classes, level.score.per_class, strict=True))
    return Evaluation(SavedEvaluation(scores=scores, per_class=per_class), per_image)


def softmax_evidence(level: SoftmaxLevel, test: Features, classes: Sequence[str]) -> Evaluation:
    """Return a level's accuracies, and of each image its class and the classes put before it."""
    per_image = {
        "sample_ids_N": test.sample_ids_N,
        "labels_N": test.positives_NC.int().argmax(dim=1),
        "ranks_N": torch.from_numpy(level.ranks_M),
    }
    scores = {
        "top1": level.top1,
        "top5": level.top5,
        "images": float(len(test.sample_ids_N)),
        "classes": float(len(classes)),
    }
    per_class = dict(zip(classes, level.per_class, strict=True))
    return Evaluation(SavedEvaluation(scores=scores, per_class=per_class), per_image)


def check_single_labels(shards: ShardSet, what: str) -> None:
    """Refuse a set whose images do not have one class each, before their features are computed.

    A sample of the labels is read, of a set on disk; `single_labels` has the last word.

    Raises:
        UsageError: they have several, or none.
    """
    if is_remote(shards):
        return
    counted = count_classes(shards, "classes")
    if int(counted.counts_C.sum()) != counted.samples:
        raise UsageError(
            f"{what}: {counted.samples} images have {int(counted.counts_C.sum())} classes, and "
            f"{NEEDS_ONE}"
        )


def check(settings: ProbeSettings, ranks: Ranks) -> None:
    """Find mistakes before long work.

    Raises:
        UsageError: settings contradict each other, or scikit-learn is missing.
        OSError: the output folder cannot be written.
    """
    if (settings.model == RANDOM) != (settings.like is not None):
        raise UsageError(
            "--model random needs --like DIR, the generator whose architecture it has; no other "
            "model takes it"
        )
    # Neighbors need no scikit-learn.
    if settings.protocol != "knn":
        check_sklearn()
    if ranks.main:
        check_output(settings.out, PROBE)
        settings.out.mkdir(parents=True, exist_ok=True)
        # Found out now, and not after an hour of features.
        with tempfile.TemporaryFile(dir=settings.out):
            pass


def open_encoder(settings: ProbeSettings) -> tuple[FeaturePyramid, ModelConfig]:
    """Return the encoder, on the CPU, and its config; for `random`, weights are drawn later."""
    if settings.like is None:
        model, config = load_model(Path(settings.model), "generator", "encoder")
    else:
        config = read_config(settings.like)
        if config.kind != "generator":
            raise ModelFolderError(
                f"{settings.like} holds a {config.kind}, a generator is needed here"
            )
        # Undefined weights: `random_encoder` draws them once the set is open.
        model = build_model(config)

    return encoder_of(model).eval(), config


def open_sets(data: DataSettings, ranks: Ranks) -> tuple[ShardSet, ShardSet]:
    """Return training and test set.

    Raises:
        UsageError: their classes differ, or both contain the same images.
    """
    train = open_set(
        data.train,
        data.cache_dir,
        data.cache_gb,
        ranks,
    )
    test = open_set(data.test, data.cache_dir, data.cache_gb, ranks)
    if train.classes != test.classes:
        raise UsageError(
            f"{data.train[0]} has {len(train.classes)} classes, {data.test[0]} has "
            f"{len(test.classes)} others: take both parts from one corpus"
        )

    # Tested on its own images an encoder looks better than it is.
    train_digests = {manifest.digest for manifest in train.manifests}
    if any(manifest.digest in train_digests for manifest in test.manifests):
        raise UsageError(
            f"{data.test[0]}: the same images are in data.train and in data.test: take "
            "another split"
        )
    return train, test


def walk(
    settings: ProbeSettings,
    config: ModelConfig,
    shards: ShardSet,
    ranks: Ranks,
    work: Callable[[Loader, Shown], T],
) -> T:
    """Do `work` with a loader of this rank's part of a set; rank 0 shows progress.

    Called on all ranks.
    """
    opened = open_whole_set(
        shards,
        ranks,
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
        batch_size=settings.batch_size,
        targets="classes",
    )
    with opened as loader, images_shown(shards.num_samples) as show:

        def shown(done: int) -> None:
            if ranks.main:
                # An estimate from this rank: asking the others would be a collective call per
                # batch.
                show(min(done * ranks.world_size, shards.num_samples), 0)

        return work(loader, shown)


def printing(ranks: Ranks) -> Callable[[str, int, int], None]:
    """Return a function that prints what is done, on rank 0, every few seconds."""
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if ranks.main and time.monotonic() - last >= PRINT_EVERY_S:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return show


def about(settings: ProbeSettings, config: ModelConfig, train: Part, test: Part) -> dict[str, Any]:
    """Return what the scores were computed with, as fields of probe.json."""
    return {
        "model": settings.model,
        "like": None if settings.like is None else str(settings.like),
        "architecture": config.architecture.model_dump(),
        "images_seen": 0 if settings.model == RANDOM else config.images_seen,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "classes": list(train.shards.classes),
        "data": {"train": _about_part(train), "test": _about_part(test)},
        "versions": {name: installed(name) for name in ("scikit-learn", "numpy", "torch")},
    }


def _about_part(part: Part) -> dict[str, Any]:
    positives_NC = part.features.positives_NC & ~part.features.difficult_NC
    num_images = len(part.features.sample_ids_N)
    return {
        "folders": [str(folder) for folder in part.folders],
        "digest": part.shards.digest,
        "images": num_images,
        "images_not_read": part.shards.num_samples - num_images,
        "positives": positives_NC.sum(dim=0).tolist(),
    }


def installed(name: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
