"""probe.json: written and read here, nowhere else. Scores are shares in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, read_json, short, whole, write_json

PROBE = "probe.json"
# Bounds of a file that may come from anywhere.
MAX_LEVELS, MAX_COLUMNS, MAX_CLASSES = 16, 16, 1000
Row = tuple[float | None, ...]


@dataclass(frozen=True)
class Probe:
    """The scores of one encoder's frozen features, level by level, the largest level first.

    Attributes:
        linear: each level's mAP, mAP at 11 points, and mAP cross-validated on the training part.
        shots: numbers of positive images per class; `low_shot` has each level's mean and deviation
            for each.
        neighbors: numbers of neighbors; `knn` has each level's mAP for each.
        softmax: each level's top-1 accuracy, that by chance, top-5 accuracy, that by chance, and
            top-1 accuracy cross-validated on the training part.
        best_linear: the level that the training part prefers.
        best_knn: the level and number of neighbors that it prefers.
        best_softmax: the level that it prefers.
    """

    path: Path
    model: str
    seed: str
    train: int | None
    test: int | None
    classes: int
    levels: tuple[str, ...]
    linear: tuple[Row, ...]
    shots: tuple[int, ...]
    low_shot: tuple[tuple[tuple[float | None, float | None], ...], ...]
    neighbors: tuple[int, ...]
    knn: tuple[Row, ...]
    best_linear: int | None
    best_knn: tuple[int, int] | None
    softmax: tuple[Row, ...]
    best_softmax: int | None


def write_probe(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Write probe.json, whole or not at all; return its path. Rank 0 only.

    Args:
        folder: of the probe.
        fields: settings, sets and scores (colorgan/probes/tables.py); NaN is not allowed.
    """
    path = folder / PROBE
    write_json(path, fields)
    return path


def read_probe(folder: Path) -> Probe:
    """Read the folder of a probe; what is damaged counts as absent.

    Raises:
        UsageError: probe.json holds no score.
    """
    fields = read_json(folder / PROBE)
    # The file's names are those of the first version.
    linear = mapping(fields.get("linear"))
    low_shot = _levels(fields, "lowshot")
    knn = _levels(fields, "knn")
    softmax = mapping(fields.get("softmax"))
    probe = Probe(
        path=folder,
        model=short(fields.get("model")),
        seed=short(fields.get("seed"), 20),
        train=_num_images(fields, "train"),
        test=_num_images(fields, "test"),
        classes=len(entries(fields.get("classes"), MAX_CLASSES)),
        levels=_level_names(fields),
        # Bounded and typed one by one: the file may come from anywhere.
        linear=tuple(_linear(level) for level in entries(linear.get("levels"), MAX_LEVELS)),
        shots=_ks(low_shot),
        low_shot=tuple(tuple(_shot(each) for each in level) for level in low_shot),
        neighbors=_ks(knn),
        knn=tuple(tuple(_mAP(each) for each in level) for level in knn),
        best_linear=whole(linear.get("best_level")),
        best_knn=_best_knn(fields),
        softmax=tuple(_softmax(level) for level in entries(softmax.get("levels"), MAX_LEVELS)),
        best_softmax=whole(softmax.get("best_level")),
    )
    # One protocol is enough; a probe need not run all.
    if not (probe.linear or probe.low_shot or probe.knn or probe.softmax):
        raise UsageError(
            f"{folder / PROBE} holds no scores: write it again with launcher/probe.py --out DIR"
        )
    return probe


def _levels(fields: Mapping[str, Any], protocol: str) -> list[list[dict[str, Any]]]:
    """Return a protocol's entries by level."""
    levels = entries(mapping(fields.get(protocol)).get("levels"), MAX_LEVELS)
    return [[mapping(each) for each in entries(level, MAX_COLUMNS)] for level in levels]


def _linear(level: Any) -> Row:
    score = mapping(mapping(level).get("score"))
    cross_validated = mapping(level).get("cross_validated")
    return number(score.get("mAP")), number(score.get("mAP_11_point")), number(cross_validated)


def _softmax(level: Any) -> Row:
    names = ("top1", "chance_top1", "top5", "chance_top5", "cross_validated")
    return tuple(number(mapping(level).get(name)) for name in names)


def _shot(entry: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return number(entry.get("mAP_mean")), number(entry.get("mAP_std"))


def _mAP(entry: Mapping[str, Any]) -> float | None:  # noqa: N802 (the field's spelling)
    return number(mapping(entry.get("score")).get("mAP"))


def _ks(levels: list[list[dict[str, Any]]]) -> tuple[int, ...]:
    return tuple(whole(each.get("k")) or 0 for each in levels[0]) if levels else ()


def _best_knn(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    knn = mapping(fields.get("knn"))
    level, k = whole(knn.get("best_level")), whole(knn.get("best_k"))
    return None if level is None or k is None else (level, k)


def _num_images(fields: Mapping[str, Any], part: str) -> int | None:
    return whole(mapping(mapping(fields.get("data")).get(part)).get("images"))


def _level_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    names = []
    for place, level in enumerate(entries(fields.get("levels"), MAX_LEVELS), 1):
        channels, grid = whole(mapping(level).get("channels")), whole(mapping(level).get("grid"))
        known = channels is not None and grid is not None
        names.append(f"{place}: {channels}×{grid}×{grid}" if known else str(place))
    return tuple(names)
