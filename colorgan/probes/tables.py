"""All protocols on all levels of an encoder, as plain data for a file and as tables to read.

Between colorgan/probes/linear.py and colorgan/probes/knn.py, which judge one level, and launcher/probe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from colorgan.distributed.ranks import Ranks
from colorgan.probes.features import Features
from colorgan.probes.knn import TEMPERATURE, Neighbours, probe_neighbours
from colorgan.probes.linear import (
    NUM_DRAWS,
    SHOT_COST,
    LinearLevel,
    Shot,
    probe_linear,
    probe_shots,
)
from colorgan.probes.svm import COSTS, NUM_FOLDS

Protocol = Literal["linear", "lowshot", "knn"]
Grids = Sequence[tuple[int, int, int]]  # channels, side and grid side of each level


@dataclass(frozen=True)
class Probed:
    """What each protocol found, level by level, largest first; empty where it was not asked for."""

    linear: tuple[LinearLevel, ...] = ()
    lowshot: tuple[tuple[Shot, ...], ...] = ()
    knn: tuple[tuple[Neighbours, ...], ...] = ()


def probe(
    protocols: Sequence[Protocol],
    train: Features,
    test: Features,
    ranks: Ranks,
    *,
    seed: int,
    shown: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Probed:
    """Run protocols on every level. Called on all ranks; the same on all.

    Args:
        seed: of the low-shot draws.
        shown: called with protocol and level, classes done, and classes in all.
    """
    levels = range(len(train.levels))

    def told(protocol: Protocol, level: int) -> Callable[[int, int], None]:
        return lambda done, total: shown(
            f"{protocol}, level {level + 1} of {len(levels)}", done, total
        )

    return Probed(
        tuple(
            probe_linear(i, train, test, ranks, told("linear", i))
            for i in levels
            if "linear" in protocols
        ),
        tuple(
            tuple(probe_shots(i, train, test, ranks, seed=seed, shown=told("lowshot", i)))
            for i in levels
            if "lowshot" in protocols
        ),
        tuple(tuple(probe_neighbours(i, train, test)) for i in levels if "knn" in protocols),
    )


def best_linear_level(probed: Probed) -> int | None:
    """Return the index of the level that cross-validation on the training part prefers; None without one."""
    return _best([level.cross_validated for level in probed.linear])


def best_neighbours(probed: Probed) -> tuple[int, int] | None:
    """Return the level's index and k that the training part prefers, each picture without itself; None without one."""
    places = [
        (i, found.k, found.cross_validated) for i, level in enumerate(probed.knn) for found in level
    ]
    best = _best([value for *_, value in places])
    return None if best is None else places[best][:2]


def _best(values: Sequence[float]) -> int | None:
    """The index of the largest value that is a number; the first of equals."""
    return max(
        (i for i, value in enumerate(values) if value == value),
        key=values.__getitem__,
        default=None,
    )


def plain(probed: Probed, grids: Grids) -> dict[str, Any]:
    """Return all numbers as JSON takes them: what could not be scored is null."""
    found: dict[str, Any] = {
        "levels": [
            {"channels": c, "side": side, "grid": grid, "numbers": c * grid * grid}
            for c, side, grid in grids
        ]
    }
    if probed.linear:
        found["linear"] = {
            "costs": COSTS,
            "folds": NUM_FOLDS,
            "best_level": best_linear_level(probed),
            "levels": [asdict(level) for level in probed.linear],
        }
    if probed.lowshot:
        found["lowshot"] = {
            "cost": SHOT_COST,
            "draws": NUM_DRAWS,
            "nested": True,
            "levels": [[asdict(shot) for shot in level] for level in probed.lowshot],
        }
    if probed.knn:
        best = best_neighbours(probed)
        found["knn"] = {
            "temperature": TEMPERATURE,
            "best_level": None if best is None else best[0],
            "best_k": None if best is None else best[1],
            "levels": [[asdict(neighbours) for neighbours in level] for level in probed.knn],
        }
    return {name: _without_nan(value) for name, value in found.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def tables(probed: Probed, grids: Grids, train: Features, test: Features) -> str:
    """Return the tables: mean average precision in percent, area under the curve, by level."""
    names = [f"{level + 1}: {c} x {grid} x {grid}" for level, (c, _, grid) in enumerate(grids)]
    parts = [
        f"{len(train.sample_ids_N)} training pictures, {len(test.sample_ids_N)} test pictures; mAP in percent"
    ]
    if probed.linear:
        parts.append(_linear_table(probed, names))
    if probed.lowshot:
        parts.append(_lowshot_table(probed, names))
    if probed.knn:
        parts.append(_knn_table(probed, names))
    return "\n\n".join(parts)


def _linear_table(probed: Probed, names: Sequence[str]) -> str:
    best = best_linear_level(probed)
    rows = [["level", "mAP", "11-point", "chance", "classes", "cross-validated", ""]]
    for i, (name, level) in enumerate(zip(names, probed.linear, strict=True)):
        score = level.score
        numbers = [_percent(value) for value in (score.mAP, score.mAP_11_point, score.chance)]
        unfinished = f"{level.unfinished_fits} fits unfinished" if level.unfinished_fits else ""
        mark = "<- best by cross-validation " if i == best else ""
        rows.append(
            [name, *numbers, str(score.classes), _percent(level.cross_validated), mark + unfinished]
        )
    return f"linear: one SVM a class, cost by {NUM_FOLDS}-fold cross-validation\n" + _aligned(rows)


def _lowshot_table(probed: Probed, names: Sequence[str]) -> str:
    first = probed.lowshot[0]
    rows = [
        ["positives", *(str(shot.k) for shot in first)],
        ["classes", *(str(s.draws[0].classes) for s in first)],
    ]
    for name, level in zip(names, probed.lowshot, strict=True):
        rows.append(
            [name, *(f"{_percent(shot.mAP_mean)} ± {_percent(shot.mAP_std)}" for shot in level)]
        )
    return f"lowshot: k positives a class, mean and deviation of {NUM_DRAWS} draws\n" + _aligned(
        rows
    )


def _knn_table(probed: Probed, names: Sequence[str]) -> str:
    best = best_neighbours(probed)
    rows = [["neighbours", *(str(found.k) for found in probed.knn[0])]]
    for i, (name, level) in enumerate(zip(names, probed.knn, strict=True)):
        rows.append(
            [name, *(_percent(found.score.mAP) + "*" * ((i, found.k) == best) for found in level)]
        )
    return "knn: votes of the nearest pictures; * best by the training part\n" + _aligned(rows)


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
