"""All protocols on all levels of an encoder, as fields of probe.json and as text tables.

Between colorgan/probes/linear.py and knn.py, which judge one level, and colorgan/probes/probe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from colorgan.distributed.ranks import Ranks
from colorgan.probes.features import Features, LevelGrid
from colorgan.probes.knn import TEMPERATURE, Neighbors, probe_neighbors
from colorgan.probes.linear import (
    NUM_DRAWS,
    SHOT_COST,
    LinearLevel,
    Shot,
    probe_linear,
    probe_shots,
)
from colorgan.probes.softmax import SOFTMAX_COSTS, TOP, Labels, SoftmaxLevel, probe_softmax
from colorgan.probes.svm import COSTS, NUM_FOLDS

ProbeKind = Literal["linear", "lowshot", "knn", "softmax"]
Rows = list[list[str]]


@dataclass(frozen=True)
class Probed:
    """The scores of each protocol by level, largest first; empty if it did not run."""

    linear: tuple[LinearLevel, ...] = ()
    low_shot: tuple[tuple[Shot, ...], ...] = ()
    knn: tuple[tuple[Neighbors, ...], ...] = ()
    softmax: tuple[SoftmaxLevel, ...] = ()


def probe(
    kinds: Sequence[ProbeKind],
    train: Features,
    test: Features,
    ranks: Ranks,
    *,
    seed: int,
    labels: tuple[Labels, Labels] | None = None,
    shown: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Probed:
    """Run protocols on every level. Called on all ranks; the same result on all.

    Args:
        kinds: of the protocols.
        train: features of the training part.
        test: features of the test part.
        ranks: that share the classes.
        seed: of the low-shot draws.
        labels: each training and each test image's class; needed by softmax alone.
        shown: called with what is counted, how many are done, and how many there are.
    """
    num_levels = len(train.levels)

    def progress(kind: ProbeKind, level: int) -> Callable[[int, int], None]:
        title = f"{kind}, classes of level {level + 1} of {num_levels}"
        return lambda done, total: shown(title, done, total)

    linear, low_shot, knn = [], [], []
    for level in range(num_levels):
        # Level by level, so that one level's rows are in memory at a time.
        if "linear" in kinds:
            linear.append(
                probe_linear(
                    level,
                    train,
                    test,
                    ranks,
                    progress("linear", level),
                )
            )
        if "lowshot" in kinds:
            tell = progress("lowshot", level)
            low_shot.append(
                tuple(
                    probe_shots(
                        level,
                        train,
                        test,
                        ranks,
                        seed=seed,
                        shown=tell,
                    )
                )
            )
        if "knn" in kinds:
            knn.append(tuple(probe_neighbors(level, train, test)))

    softmax: list[SoftmaxLevel] = []
    if "softmax" in kinds:
        assert labels is not None
        softmax = probe_softmax(
            train,
            test,
            labels,
            ranks,
            lambda done, total: shown("softmax, levels", done, total),
        )
    return Probed(tuple(linear), tuple(low_shot), tuple(knn), tuple(softmax))


def best_linear_level(probed: Probed) -> int | None:
    """Return the level that cross-validation on the training part prefers; None without one."""
    return _best([level.cross_validated for level in probed.linear])


def best_softmax_level(probed: Probed) -> int | None:
    """Return the level that cross-validation on the training part prefers; None without one."""
    return _best([level.cross_validated for level in probed.softmax])


def best_neighbors(probed: Probed) -> tuple[int, int] | None:
    """Return level and k that the training part prefers, each image without itself."""
    places, values = [], []
    for level, entries in enumerate(probed.knn):
        for each in entries:
            places.append((level, each.k))
            values.append(each.cross_validated)

    best = _best(values)
    return None if best is None else places[best]


def _best(values: Sequence[float]) -> int | None:
    """Return the index of the largest value that is not NaN; the first of equals."""
    # A class or level that could not be judged is NaN, which compares as neither.
    known = [index for index, value in enumerate(values) if value == value]
    return max(known, key=values.__getitem__, default=None)


def plain(probed: Probed, grids: Sequence[LevelGrid]) -> dict[str, Any]:
    """Return all scores as fields of probe.json; undefined ones are null."""
    levels = []
    for each in grids:
        numbers = each.channels * each.grid * each.grid
        levels.append({**asdict(each), "numbers": numbers})

    fields: dict[str, Any] = {"levels": levels}
    if probed.linear:
        fields["linear"] = {
            "costs": COSTS,
            "folds": NUM_FOLDS,
            "best_level": best_linear_level(probed),
            "levels": [_without(level, "decisions_MC") for level in probed.linear],
        }
    if probed.low_shot:
        fields["lowshot"] = {
            "cost": SHOT_COST,
            "draws": NUM_DRAWS,
            "nested": True,
            "levels": [list(map(asdict, level)) for level in probed.low_shot],
        }
    if probed.knn:
        best_level, best_k = best_neighbors(probed) or (None, None)
        fields["knn"] = {
            "temperature": TEMPERATURE,
            "best_level": best_level,
            "best_k": best_k,
            "levels": [list(map(asdict, level)) for level in probed.knn],
        }
    if probed.softmax:
        fields["softmax"] = {
            "costs": SOFTMAX_COSTS,
            "folds": NUM_FOLDS,
            "best_level": best_softmax_level(probed),
            "levels": [_without(level, "ranks_M") for level in probed.softmax],
        }
    return {name: _without_nan(value) for name, value in fields.items()}


def _without(level: LinearLevel | SoftmaxLevel, evidence: str) -> dict[str, Any]:
    """Return a level's fields but the one that has a value per image, and a file of its own."""
    fields = asdict(level)
    del fields[evidence]
    return fields


def _without_nan(value: Any) -> Any:
    """Return nested data with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def tables(probed: Probed, grids: Sequence[LevelGrid], num_train: int, num_test: int) -> str:
    """Return text tables by level, in percent: mean AP (area under the curve), or accuracies."""
    names = []
    for level, each in enumerate(grids, 1):
        names.append(f"{level}: {each.channels} x {each.grid} x {each.grid}")

    parts = [f"{num_train} training images, {num_test} test images; in percent"]
    if probed.linear:
        parts.append(_linear_table(probed, names))
    if probed.low_shot:
        parts.append(_low_shot_table(probed, names))
    if probed.knn:
        parts.append(_knn_table(probed, names))
    if probed.softmax:
        parts.append(_softmax_table(probed, names))
    return "\n\n".join(parts)


def _linear_table(probed: Probed, names: Sequence[str]) -> str:
    best = best_linear_level(probed)
    rows = [
        [
            "level",
            "mAP",
            "11-point",
            "chance",
            "classes",
            "cross-validated",
            "",
        ]
    ]
    for index, (name, level) in enumerate(zip(names, probed.linear, strict=True)):
        remarks = "<- best by cross-validation " if index == best else ""
        if level.unfinished_fits:
            remarks += f"{level.unfinished_fits} fits unfinished"
        score = level.score
        rows.append(
            [
                name,
                _percent(score.mAP),
                _percent(score.mAP_11_point),
                _percent(score.chance),
                str(score.classes),
                _percent(level.cross_validated),
                remarks,
            ]
        )
    title = f"linear: mAP of one SVM per class, cost by {NUM_FOLDS}-fold cross-validation"
    return f"{title}\n{_aligned(rows)}"


def _low_shot_table(probed: Probed, names: Sequence[str]) -> str:
    first = probed.low_shot[0]
    rows = [
        ["positives", *(str(shot.k) for shot in first)],
        ["classes", *(str(shot.draws[0].classes) for shot in first)],
    ]
    for name, level in zip(names, probed.low_shot, strict=True):
        cells = [f"{_percent(shot.mAP_mean)} ± {_percent(shot.mAP_std)}" for shot in level]
        rows.append([name, *cells])
    title = f"lowshot: mAP from k positives per class, mean and deviation of {NUM_DRAWS} draws"
    return f"{title}\n{_aligned(rows)}"


def _knn_table(probed: Probed, names: Sequence[str]) -> str:
    best = best_neighbors(probed)
    rows = [["neighbors", *(str(each.k) for each in probed.knn[0])]]
    for index, (name, level) in enumerate(zip(names, probed.knn, strict=True)):
        cells = []
        for each in level:
            mark = "*" if (index, each.k) == best else ""
            cells.append(_percent(each.score.mAP) + mark)
        rows.append([name, *cells])
    return f"knn: mAP by votes of the nearest images; * best by the training part\n{_aligned(rows)}"


def _softmax_table(probed: Probed, names: Sequence[str]) -> str:
    best = best_softmax_level(probed)
    top5 = f"top-{TOP}"
    rows = [["level", "top-1", "chance", top5, "chance", "cross-validated", ""]]
    for index, (name, level) in enumerate(zip(names, probed.softmax, strict=True)):
        remarks = "<- best by cross-validation " if index == best else ""
        if level.unfinished_fits:
            remarks += f"{level.unfinished_fits} fits unfinished"
        shares = (level.top1, level.chance_top1, level.top5, level.chance_top5)
        rows.append([name, *map(_percent, shares), _percent(level.cross_validated), remarks])
    title = f"softmax: accuracy of one linear classifier, cost by {NUM_FOLDS}-fold cross-validation"
    return f"{title}\n{_aligned(rows)}"


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"


def _aligned(rows: Rows) -> str:
    """Return rows as aligned columns, the first to the left, the others to the right."""
    # Aligned by hand: the table is read in logs too.
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
