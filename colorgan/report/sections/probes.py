"""Tables of probes of frozen features: linear classifiers, few labels, nearest neighbours; mAP in per cent by level.

An arm is a name and its probes, one a seed: their means stand in the tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from colorgan.probes.record import Probe
from colorgan.report.drawing.html import Html, join, table

Arms = Mapping[str, Sequence[Probe]]
NO_VALUE = "–"


def probe_tables(arms: Arms) -> Html:
    """Return the tables that any of the arms has."""
    return join([_linear(arms), _lowshot(arms), _knn(arms)])


def _linear(arms: Arms) -> Html | None:
    """A row a level, a column an arm."""
    found = {name: probes for name, probes in arms.items() if any(probe.linear for probe in probes)}
    if not found:
        return None
    levels = max((probe.levels for probes in found.values() for probe in probes), key=len)

    def cell(probes: Sequence[Probe], level: int) -> str:
        values = [p.linear[level][0] for p in probes if level < len(p.linear)]
        best = "\u00a0*" if any(probe.best_linear == level for probe in probes) else ""
        return spread(values) + best if values else NO_VALUE

    rows = [
        [name, *(cell(probes, level) for probes in found.values())]
        for level, name in enumerate(levels)
    ]
    told = f"Linear, one classifier a class, by level; * chosen by the training part alone. {_counts(found)}"
    return table(("Level", *found), rows, told)


def _lowshot(arms: Arms) -> Html | None:
    found = {
        name: probes for name, probes in arms.items() if any(probe.lowshot for probe in probes)
    }
    if not found:
        return None
    columns = max((probe.shots for probes in found.values() for probe in probes), key=len)

    def cell(probes: Sequence[Probe], level: int, place: int) -> str:
        shots = [
            p.lowshot[level][place]
            for p in probes
            if level < len(p.lowshot) and place < len(p.lowshot[level])
        ]
        mean, deviation = (_mean([shot[i] for shot in shots]) for i in (0, 1))
        return (
            _percent(mean)
            if deviation is None
            else f"{_percent(mean)}\u00a0±\u00a0{_percent(deviation)}"
        )

    told = f"Linear from k positive pictures a class: mean ± deviation over the draws. {_counts(found)}"
    return table(
        ("Arm, level", *(f"k = {k}" for k in columns)), _rows(found, len(columns), cell), told
    )


def _knn(arms: Arms) -> Html | None:
    found = {name: probes for name, probes in arms.items() if any(probe.knn for probe in probes)}
    if not found:
        return None
    columns = max((probe.neighbours for probes in found.values() for probe in probes), key=len)

    def cell(probes: Sequence[Probe], level: int, place: int) -> str:
        values = [
            p.knn[level][place] for p in probes if level < len(p.knn) and place < len(p.knn[level])
        ]
        best = (
            "\u00a0*" if any(probe.best_knn == (level, columns[place]) for probe in probes) else ""
        )
        return _percent(_mean(values)) + best

    told = f"k nearest neighbours, nothing trained; * chosen by the training part alone. {_counts(found)}"
    return table(
        ("Arm, level", *(f"k = {k}" for k in columns)), _rows(found, len(columns), cell), told
    )


def _rows(
    arms: Arms, num_columns: int, cell: Callable[[Sequence[Probe], int, int], str]
) -> list[list[str]]:
    """A row a level of each arm."""
    return [
        [f"{name}, {title}", *(cell(probes, level, place) for place in range(num_columns))]
        for name, probes in arms.items()
        for level, title in enumerate(probes[0].levels)
    ]


def _counts(arms: Arms) -> str:
    first = next(iter(arms.values()))[0]
    counts = (
        (first.train, "pictures to train"),
        (first.test, "to score"),
        (first.classes, "classes"),
    )
    seeds = ", ".join(f"{name} {len(probes)}" for name, probes in arms.items())
    return f"mAP in %. {', '.join(f'{count:,} {what}' for count, what in counts if count)}. Probes: {seeds}."


def spread(shares: Sequence[float | None]) -> str:
    """Return the mean in per cent, and the sample standard deviation after ± where there are several."""
    known = [100 * share for share in shares if share is not None]
    if not known:
        return NO_VALUE
    mean = f"{statistics.fmean(known):.1f}"
    return mean if len(known) < 2 else f"{mean}\u00a0±\u00a0{statistics.stdev(known):.1f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _percent(share: float | None) -> str:
    return NO_VALUE if share is None else f"{100 * share:.1f}"
