"""Probes of frozen features (launcher/probe.py's probe.json) as plain data; scores are shares in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, read_json, short, whole

PROBE = "probe.json"
MAX_LEVELS, MAX_COLUMNS = 16, 16
Row = tuple[float | None, ...]


@dataclass(frozen=True)
class Probe:
    """What one encoder's frozen features are worth, level by level, the largest level first.

    Attributes:
        linear: each level's mAP, mAP at 11 points, and mAP cross-validated on the training part.
        shots: the numbers of positive pictures a class; `lowshot` has each level's mean and deviation for each.
        neighbours: the numbers of neighbours; `knn` has each level's mAP for each.
        best_linear: the level that the training part prefers; `best_knn` level and number of neighbours.
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
    lowshot: tuple[tuple[tuple[float | None, float | None], ...], ...]
    neighbours: tuple[int, ...]
    knn: tuple[Row, ...]
    best_linear: int | None
    best_knn: tuple[int, int] | None


def read_probe(folder: Path) -> Probe:
    """Read the folder of a probe.

    Raises:
        UsageError: probe.json is damaged or holds no table.
    """
    text = read_json(folder / PROBE)
    linear, lowshot, knn = (mapping(text.get(name)) for name in ("linear", "lowshot", "knn"))
    lowshot_levels, knn_levels = _levels(lowshot), _levels(knn)
    probe = Probe(
        path=folder,
        model=short(text.get("model")),
        seed=short(text.get("seed"), 20),
        train=_images(text, "train"),
        test=_images(text, "test"),
        classes=len(entries(text.get("classes"), 1000)),
        levels=tuple(map(_level_name, enumerate(entries(text.get("levels"), MAX_LEVELS), 1))),
        linear=tuple(map(_linear, entries(linear.get("levels"), MAX_LEVELS))),
        shots=_ks(lowshot_levels),
        lowshot=tuple(
            tuple((number(shot.get("mAP_mean")), number(shot.get("mAP_std"))) for shot in level)
            for level in lowshot_levels
        ),
        neighbours=_ks(knn_levels),
        knn=tuple(
            tuple(number(mapping(k.get("score")).get("mAP")) for k in level) for level in knn_levels
        ),
        best_linear=whole(linear.get("best_level")),
        best_knn=_best(knn),
    )
    if not (probe.linear or probe.lowshot or probe.knn):
        raise UsageError(
            f"{folder / PROBE} holds no scores: write it again with launcher/probe.py --out DIR"
        )
    return probe


def _levels(told: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    levels = entries(told.get("levels"), MAX_LEVELS)
    return [[mapping(each) for each in entries(level, MAX_COLUMNS)] for level in levels]


def _linear(level: Any) -> Row:
    score = mapping(mapping(level).get("score"))
    values = (score.get("mAP"), score.get("mAP_11_point"), mapping(level).get("cross_validated"))
    return tuple(map(number, values))


def _ks(levels: list[list[dict[str, Any]]]) -> tuple[int, ...]:
    return tuple(whole(each.get("k")) or 0 for each in levels[0]) if levels else ()


def _best(knn: Mapping[str, Any]) -> tuple[int, int] | None:
    level, k = whole(knn.get("best_level")), whole(knn.get("best_k"))
    return None if level is None or k is None else (level, k)


def _images(text: Mapping[str, Any], part: str) -> int | None:
    return whole(mapping(mapping(text.get("data")).get(part)).get("images"))


def _level_name(numbered: tuple[int, Any]) -> str:
    place, level = numbered
    told = [whole(mapping(level).get(key)) for key in ("channels", "grid")]
    return f"{place}: {told[0]}×{told[1]}×{told[1]}" if None not in told else str(place)
