"""Tables of probes of frozen features: linear classifiers, few labels, nearest neighbors, softmax.

mAP or accuracy in percent by level. An arm is a name and its probes, one per seed: the tables have
their means.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from colorgan.probes.record import Probe
from colorgan.report.blocks import Block, Folded, Table
from colorgan.report.published import (
    PUBLISHED_SVM,
    SVM_BACKBONE,
    SVM_DATA,
    SVM_SOURCE,
)
from colorgan.runs.reading import short_names

Probes = Mapping[str, Sequence[Probe]]  # by arm
NO_VALUE = "–"
CHOSEN = "\u00a0*"


def probe_tables(arms: Probes) -> list[Block]:
    """Return the tables that any of the arms has."""
    linear = _linear(arms)
    published = [_published_svm()] if linear else []
    return [*linear, *published, *_low_shot(arms), *_knn(arms), *_softmax(arms)]


def _published_svm() -> Block:
    """Return what others published by this protocol, apart from ours: other networks and data."""
    rows = []
    for each in PUBLISHED_SVM:
        data = NO_VALUE if each.method.startswith("random") else SVM_DATA
        rows.append([each.method, SVM_BACKBONE, data, str(each.level), f"{each.mAP:.2f}\u00a0%"])

    caption = (
        "Linear SVMs on levels pooled to about 9,000 numbers (Goyal et al. 2019), of RGB photos at "
        "224 pixels, all of VOC 2007: trainval to train, test to score, the level with the best "
        f"test mAP. Source: {SVM_SOURCE}. Comparable with a probe of the whole of VOC 2007 only; "
        "ours sees one grey channel, and the training part chooses its level."
    )
    header = ("Pretrained by", "Network", "Pretraining data", "Best level of 5", "mAP")
    return Folded("Published results of linear SVMs on VOC 2007", [Table(header, rows, caption)])


def by_model(probes: Sequence[Probe]) -> dict[str, list[Probe]]:
    """Return probes by their model's short name; those of one model are one arm."""
    models = list(dict.fromkeys(each.model for each in probes))
    names = dict(
        zip(
            models,
            short_names([Path(model) for model in models]),
            strict=True,
        )
    )
    arms: dict[str, list[Probe]] = {}
    for each in probes:
        arms.setdefault(names[each.model], []).append(each)
    return arms


def best_of(probes: Sequence[Probe]) -> tuple[str, list[float]]:
    """Return what was scored, and each probe's score at the level that its training part chose.

    Linear classifiers come first, then nearest neighbors, then softmax; ("", []) without any.
    """
    # The level that the training part chose: the best on the test part would be chosen by it.
    linear = []
    for each in probes:
        # A record may be cut or edited by hand: a place outside it has no value.
        if each.best_linear is not None and each.best_linear < len(each.linear):
            linear.append(each.linear[each.best_linear][0])
    known = [value for value in linear if value is not None]
    if known:
        return "mAP of linear classifiers", known

    nearest = []
    for each in probes:
        if each.best_knn is not None and each.best_knn[1] in each.neighbors:
            level, k = each.best_knn
            if level < len(each.knn):
                nearest.append(each.knn[level][each.neighbors.index(k)])
    known = [value for value in nearest if value is not None]
    if known:
        return "mAP of nearest neighbors", known

    top1 = []
    for each in probes:
        if each.best_softmax is not None and each.best_softmax < len(each.softmax):
            top1.append(each.softmax[each.best_softmax][0])
    known = [value for value in top1 if value is not None]
    return ("top-1 accuracy of softmax classifiers", known) if known else ("", [])


def _linear(arms: Probes) -> list[Block]:
    """Return a row per level, a column per arm."""
    found = {name: probes for name, probes in arms.items() if any(each.linear for each in probes)}
    if not found:
        return []

    # Encoders of other depths share a table; the deeper one names the rows.
    levels = max((each.levels for probes in found.values() for each in probes), key=len)
    rows = []
    for level, name in enumerate(levels):
        cells = []
        for probes in found.values():
            values = [each.linear[level][0] for each in probes if level < len(each.linear)]
            chosen = CHOSEN if any(each.best_linear == level for each in probes) else ""
            cells.append(spread(values) + chosen if values else NO_VALUE)
        rows.append([name, *cells])

    caption = (
        "Linear, one classifier per class, by level; * chosen by the training part alone. "
        + _counts(found)
    )
    return [Table(("Level", *found), rows, caption)]


def _low_shot(arms: Probes) -> list[Block]:
    found = {name: probes for name, probes in arms.items() if any(each.low_shot for each in probes)}
    if not found:
        return []

    columns = max((each.shots for probes in found.values() for each in probes), key=len)
    rows = []
    for name, probes in found.items():
        for level, title in enumerate(probes[0].levels):
            cells = [_shot(probes, level, place) for place in range(len(columns))]
            rows.append([f"{name}, {title}", *cells])
    caption = (
        f"Linear from k positive images per class: mean ± deviation over draws. {_counts(found)}"
    )
    return [
        Table(
            ("Arm, level", *(f"k = {k}" for k in columns)),
            rows,
            caption,
        )
    ]


def _shot(probes: Sequence[Probe], level: int, place: int) -> str:
    means, deviations = [], []
    for each in probes:
        if level < len(each.low_shot) and place < len(each.low_shot[level]):
            mean, deviation = each.low_shot[level][place]
            means.append(mean)
            deviations.append(deviation)
    # Averaged over seeds: the chance of the draws is not mixed with that of the seeds.
    deviation = _mean(deviations)
    spread_text = "" if deviation is None else f"\u00a0±\u00a0{_percent(deviation)}"
    return _percent(_mean(means)) + spread_text


def _knn(arms: Probes) -> list[Block]:
    found = {name: probes for name, probes in arms.items() if any(each.knn for each in probes)}
    if not found:
        return []

    columns = max((each.neighbors for probes in found.values() for each in probes), key=len)
    rows = []
    for name, probes in found.items():
        for level, title in enumerate(probes[0].levels):
            cells = [
                _nearest(
                    probes,
                    level,
                    place,
                    k,
                )
                for place, k in enumerate(columns)
            ]
            rows.append([f"{name}, {title}", *cells])
    caption = (
        "k nearest neighbors, nothing trained; * chosen by the training part alone. "
        + _counts(found)
    )
    return [
        Table(
            ("Arm, level", *(f"k = {k}" for k in columns)),
            rows,
            caption,
        )
    ]


def _nearest(probes: Sequence[Probe], level: int, place: int, k: int) -> str:
    values = []
    for each in probes:
        if level < len(each.knn) and place < len(each.knn[level]):
            values.append(each.knn[level][place])
    chosen = CHOSEN if any(each.best_knn == (level, k) for each in probes) else ""
    return _percent(_mean(values)) + chosen


def _softmax(arms: Probes) -> list[Block]:
    """Return a row per arm and level: top-1 and top-5 accuracy, each beside chance."""
    found = {name: probes for name, probes in arms.items() if any(each.softmax for each in probes)}
    if not found:
        return []

    rows = []
    for name, probes in found.items():
        for level, title in enumerate(probes[0].levels):
            cells = []
            for column in range(4):
                values = [
                    each.softmax[level][column] for each in probes if level < len(each.softmax)
                ]
                cells.append(spread(values))
            if any(each.best_softmax == level for each in probes):
                cells[0] += CHOSEN
            rows.append([f"{name}, {title}", *cells])
    caption = (
        "One softmax classifier per level, one class per image; * chosen by the training part "
        f"alone. {_counts(found, 'Accuracy')}"
    )
    return [Table(("Arm, level", "Top-1", "Chance", "Top-5", "Chance"), rows, caption)]


def _counts(arms: Probes, score: str = "mAP") -> str:
    # All probes of a table were made on the same parts.
    first = next(iter(arms.values()))[0]
    counts = []
    for count, what in (
        (first.train, "images to train"),
        (first.test, "to score"),
        (first.classes, "classes"),
    ):
        if count:
            counts.append(f"{count:,} {what}")
    seeds = ", ".join(f"{name} {len(probes)}" for name, probes in arms.items())
    return f"{score} in %. {', '.join(counts)}. Probes: {seeds}."


def spread(shares: Sequence[float | None]) -> str:
    """Return the mean in percent, with the sample standard deviation of several."""
    known = [100 * share for share in shares if share is not None]
    if not known:
        return NO_VALUE
    mean = f"{statistics.fmean(known):.1f}"
    # One run has no spread; ± 0.0 would claim one.
    return mean if len(known) < 2 else f"{mean}\u00a0±\u00a0{statistics.stdev(known):.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _percent(share: float | None) -> str:
    return NO_VALUE if share is None else f"{100 * share:.1f}"
