"""launcher/probe.py's work."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from colorgan.config.progress import images_shown
from colorgan.data import Loader, ShardSet, open_set, open_whole_set
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.model_folder import ModelConfig, build_model, load_model, read_config
from colorgan.models.unet import FeaturePyramid
from colorgan.probes.features import Features, extract_features, level_grids, random_encoder
from colorgan.probes.record import write_probe
from colorgan.probes.settings import RANDOM, DataSettings, ProbeSettings
from colorgan.probes.svm import check_sklearn
from colorgan.probes.tables import Protocol, plain, probe, tables

TELL_EVERY_S = 10.0


def run(settings: ProbeSettings, ranks: Ranks) -> None:
    """Check, extract, probe, print and write. Called on all ranks."""
    protocols: tuple[Protocol, ...] = (
        ("linear", "lowshot", "knn") if settings.protocol == "all" else (settings.protocol,)
    )
    ranks.on_all_ranks(lambda: check(settings, ranks))
    encoder, config = ranks.on_all_ranks(lambda: open_encoder(settings))
    encoder.to(ranks.device)
    train_set, test_set = open_sets(settings.data, ranks)
    if settings.model == RANDOM:
        walk(
            settings,
            config,
            train_set,
            ranks,
            lambda loader, shown: random_encoder(encoder, settings.seed, loader, ranks, shown),
        )
    train, test = (
        walk(
            settings,
            config,
            shards,
            ranks,
            lambda loader, shown: extract_features(encoder, loader, ranks, shown),
        )
        for shards in (train_set, test_set)
    )
    grids = level_grids(encoder, config.architecture.image_size)
    probed = probe(protocols, train, test, ranks, seed=settings.seed, shown=telling(ranks))
    if ranks.main:
        print(tables(probed, grids, train, test))
        origin = about(settings, config, train_set, test_set, train, test)
        path = write_probe(settings.out, {**origin, **plain(probed, grids)})
        print(f"Written: {path}")


def check(settings: ProbeSettings, ranks: Ranks) -> None:
    """Find mistakes before long work: settings that contradict each other, no scikit-learn, an unwritable folder."""
    if (settings.model == RANDOM) != (settings.like is not None):
        raise UsageError(
            "--model random needs --like DIR, the generator whose architecture it has; no other takes it"
        )
    if settings.protocol != "knn":
        check_sklearn()
    if ranks.main:
        settings.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.out):
            pass


def open_encoder(settings: ProbeSettings) -> tuple[FeaturePyramid, ModelConfig]:
    """Return the encoder, on the CPU, and its generator's config; for `random`, weights are drawn later."""
    if settings.like is None:
        model, config = load_model(Path(settings.model), "generator", "encoder")
    else:
        config = read_config(settings.like)
        if config.kind != "generator":
            raise ModelFolderError(
                f"{settings.like} holds a {config.kind}, a generator is needed here"
            )
        model = build_model(config)
    encoder = model.encoder
    assert isinstance(encoder, FeaturePyramid)
    return encoder.eval(), config


def open_sets(data: DataSettings, ranks: Ranks) -> tuple[ShardSet, ShardSet]:
    """Return training and test set; refuse sets of other classes, and a set that is tested on itself."""
    train, test = (
        open_set(folders, data.cache_dir, data.cache_gb, ranks)
        for folders in (data.train, data.test)
    )
    if train.classes != test.classes:
        raise UsageError(
            f"{data.train[0]} has {len(train.classes)} classes, {data.test[0]} has {len(test.classes)} others: take "
            "both parts from one corpus"
        )
    shared = {manifest.digest for manifest in train.manifests} & {
        manifest.digest for manifest in test.manifests
    }
    if shared:
        raise UsageError(
            f"{data.test[0]}: the same pictures are in data.train and in data.test: take another split"
        )
    return train, test


def walk(
    settings: ProbeSettings,
    config: ModelConfig,
    shards: ShardSet,
    ranks: Ranks,
    work: Callable[[Loader, Callable[[int], None]], Any],
) -> Any:
    """Do `work` with a loader of this rank's share of a set, its progress shown by rank 0. Called on all ranks."""
    opened = open_whole_set(
        shards,
        ranks,
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
        batch_size=settings.batch_size,
        targets="classes",
    )
    with opened as loader, images_shown(shards.num_samples) as shown:
        return work(
            loader,
            lambda done: (
                shown(min(done * ranks.world_size, shards.num_samples), 0) if ranks.main else None
            ),
        )


def telling(ranks: Ranks) -> Callable[[str, int, int], None]:
    """Return what tells, on rank 0 and now and then, how many classes are done."""
    last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if ranks.main and time.monotonic() - last >= TELL_EVERY_S:
            last = time.monotonic()
            print(f"{what}: {done} of {total} classes", file=sys.stderr, flush=True)

    return tell


def about(
    settings: ProbeSettings,
    config: ModelConfig,
    train_set: ShardSet,
    test_set: ShardSet,
    train: Features,
    test: Features,
) -> dict[str, Any]:
    """Return what the numbers were computed with."""
    sets = (
        ("train", settings.data.train, train_set, train),
        ("test", settings.data.test, test_set, test),
    )
    return {
        "model": settings.model,
        "like": None if settings.like is None else str(settings.like),
        "architecture": config.architecture.model_dump(),
        "images_seen": 0 if settings.model == RANDOM else config.images_seen,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "classes": list(train_set.classes),
        "data": {
            name: {
                "folders": [str(folder) for folder in folders],
                "digest": shards.digest,
                "images": len(features.sample_ids_N),
                "images_not_read": shards.num_samples - len(features.sample_ids_N),
                "positives": (features.positives_NC & ~features.difficult_NC).sum(dim=0).tolist(),
            }
            for name, folders, shards, features in sets
        },
        "versions": {name: installed(name) for name in ("scikit-learn", "numpy", "torch")},
    }


def installed(name: str) -> str | None:
    """Return a distribution's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
