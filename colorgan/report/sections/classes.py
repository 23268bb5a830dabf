"""Scores of each class with bars, confusions as heat maps, and overlays on photos.

An arm is a name and the evaluations of its runs: class scores are means over them, confusions are
added up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from colorgan.evaluation.record import SavedEvaluation
from colorgan.report.blocks import Bar, Block, Group, Heading, HeatMap, Table, Text, data_uri
from colorgan.report.charts import Files, free_name, plain
from colorgan.report.final_scores import RUN_KINDS, Result, by_conditions, data_name, spread
from colorgan.report.photos import open_picture, picture_block, png_bytes
from colorgan.report.published import METRICS, TITLES
from colorgan.report.report_data import ReportData

Evaluations = Mapping[str, Sequence[SavedEvaluation]]  # by arm
Matrix = list[list[float]]
MEASURES = {
    "classifier": "Average precision",
    "segmenter": "IoU",
    "detector": "Average precision of boxes",
}
MEANING = {
    "classifier": "Row: a class in the photo. Column: the class that scored best there.",
    "segmenter": "Row: the true class of a pixel. Column: the predicted one. Void left out.",
}
HEAT_RGB = (47, 143, 208)  # visible on white and on black; its opacity is the share
PNG_CELL_PX, PNG_FONT_PX, MAX_LABEL = 16, 12, 24
NUM_PAIRS = 8
MIN_SHARE = 0.005


def classes_blocks(key: str, arms: Evaluations, files: Files) -> list[Block]:
    """Return class scores, confusions and overlays of arms that were scored under one protocol.

    Args:
        key: begins the names of the files beside the page.
        arms: the evaluations of each arm, one per run.
        files: receives the PNGs.
    """
    # Maps beside maps and overlays beside overlays: arms are compared across.
    maps: list[Block] = []
    overlays: list[Block] = []
    for place, (name, evaluations) in enumerate(arms.items(), 1):
        maps += _confusion(name, evaluations, f"{key}-{place}", files)
        overlays += _overlays(
            name,
            evaluations,
            f"{key}-{place}",
            files,
        )

    blocks = _class_table(arms)
    blocks += [Group("abreast", figures) for figures in (maps, overlays) if figures]
    return blocks


def _class_table(arms: Evaluations) -> list[Block]:
    """Return a row per class, best first, and a bar per arm."""
    means = {}
    for name, evaluations in arms.items():
        values = class_means(evaluations)
        if values:
            means[name] = values
    if not means:
        return []

    rows = []
    for name in best_first(list(means.values())):
        cells = [_bar(values.get(name)) for values in means.values()]
        rows.append([name, *cells])

    kind = next((each.kind for evaluations in arms.values() for each in evaluations), "")
    # One arm may have more runs than another.
    several = max(len(evaluations) for evaluations in arms.values()) > 1
    over_runs = ", mean over runs" if several else ""
    caption = f"{MEASURES.get(kind, 'Score')} of each class in %{over_runs}, best first."
    return [Table(("Class", *means), rows, caption, "bars")]


def best_first(means: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Return the classes by their mean over the arms; those without a score come last."""
    names = dict.fromkeys(name for values in means for name in values)

    def order(name: str) -> float:
        known = [value for values in means if (value := values.get(name)) is not None]
        return -statistics.fmean(known) if known else 1.0

    return sorted(names, key=order)


def class_means(evaluations: Sequence[SavedEvaluation]) -> dict[str, float | None]:
    """Return each class's mean over the evaluations that could score it; None where none could."""
    names = dict.fromkeys(name for each in evaluations for name in each.per_class)
    means: dict[str, float | None] = {}
    for name in names:
        values = [each.per_class.get(name) for each in evaluations]
        known = [value for value in values if value is not None]
        means[name] = statistics.fmean(known) if known else None
    return means


def _bar(share: float | None) -> str | Bar:
    return "–" if share is None else Bar(f"{100 * share:.1f}", share)


def summed(evaluations: Sequence[SavedEvaluation]) -> tuple[tuple[str, ...], Matrix]:
    """Return the names and the sum of the confusions with the first one's classes."""
    found = [each for each in evaluations if each.confusion]
    if not found:
        return (), []

    names = found[0].confusion_names
    # Sets with other classes cannot be added up.
    alike = [each.confusion for each in found if each.confusion_names == names]
    rows_of_all = zip(*alike, strict=True)
    return names, [[sum(cells) for cells in zip(*rows, strict=True)] for rows in rows_of_all]


def row_shares(matrix: Matrix) -> Matrix:
    """Return each row as shares of its sum; an empty row stays zeros."""
    return [[count / total for count in row] if (total := sum(row)) else row for row in matrix]


def _confusion(
    name: str, evaluations: Sequence[SavedEvaluation], stem: str, files: Files
) -> list[Block]:
    names, counts = summed(evaluations)
    if not counts:
        return []

    shares = row_shares(counts)
    # Beside the page for papers and slides.
    files[f"{stem}-confusion.png"] = _heat_png(name, names, shares)
    remarks = [f"{MEANING.get(evaluations[0].kind, '')} Shades are shares of a row."]
    frequent = _frequent(names, shares)
    if frequent:
        remarks.append(f"Most often: {'; '.join(frequent)}.")
    source = data_uri(png_bytes(_heat_cells(shares)), "image/png")
    scale = [
        (f"{100 * share:g} %", _opacity(share))
        for share in (
            0.01,
            0.1,
            0.4,
            1.0,
        )
    ]
    rgb = ", ".join(map(str, HEAT_RGB))
    return [
        HeatMap(
            f"Confusion, {name}",
            names,
            source,
            remarks,
            scale,
            rgb,
        )
    ]


def _frequent(names: Sequence[str], shares: Matrix) -> list[str]:
    """Return the most frequent confusions in words."""
    pairs = []
    for true, row in enumerate(shares):
        for predicted, share in enumerate(row):
            if true != predicted and share > MIN_SHARE:
                pairs.append((share, true, predicted))
    # By share, not by count: rare classes are confused most.
    pairs.sort(reverse=True)

    texts = []
    for share, true, predicted in pairs[:NUM_PAIRS]:
        texts.append(f"{names[true]} as {names[predicted]} {100 * share:.0f} %")
    return texts


def _opacity(share: float) -> float:
    """Return the root of a share, so that a few percent are visible beside ninety."""
    return math.sqrt(max(0.0, min(1.0, share)))


def _heat_cells(shares: Matrix) -> Image.Image:
    """Return an image with one pixel per cell."""
    picture = Image.new("RGBA", (len(shares), len(shares)))
    picture.putdata([(*HEAT_RGB, round(255 * _opacity(share))) for row in shares for share in row])
    return picture


def _heat_png(title: str, names: Sequence[str], shares: Matrix) -> bytes:
    """Return the same map with names on white, for the file beside the page."""
    font = ImageFont.load_default(size=PNG_FONT_PX)
    labels = [plain(name)[:MAX_LABEL] for name in names]
    margin = 2 * PNG_FONT_PX + max(round(font.getlength(label)) for label in labels)
    # Cells of 16 pixels: eighty classes are 1,280 pixels.
    map_px = PNG_CELL_PX * len(names)
    side = margin + map_px + PNG_FONT_PX
    top = margin + 2 * PNG_FONT_PX

    sheet = Image.new(
        "RGB",
        (max(side, 420), side + 2 * PNG_FONT_PX),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    white = Image.new("RGBA", (len(names), len(names)), "white")
    heat = Image.alpha_composite(white, _heat_cells(shares)).convert("RGB")
    sheet.paste(heat.resize((map_px, map_px), Image.Resampling.NEAREST), (margin, top))
    draw.rectangle(
        (
            margin - 1,
            top - 1,
            margin + map_px,
            top + map_px,
        ),
        outline="grey",
    )
    draw.text(
        (4, 4),
        plain(f"{title[:60]}: row true, column predicted"),
        fill="black",
        font=font,
    )

    for place, label in enumerate(labels):
        middle = top + PNG_CELL_PX * place + PNG_CELL_PX // 2
        draw.text(
            (margin - 6, middle),
            label,
            fill="black",
            font=font,
            anchor="rm",
        )
        # Pillow has no vertical text: each name is drawn flat and turned.
        upright = Image.new("RGB", (margin, PNG_CELL_PX), "white")
        pen = ImageDraw.Draw(upright)
        pen.text(
            (4, PNG_CELL_PX // 2),
            label,
            fill="black",
            font=font,
            anchor="lm",
        )
        left = margin + PNG_CELL_PX * place
        sheet.paste(upright.rotate(90, expand=True), (left, top - margin - 2))
    return png_bytes(sheet)


def _overlays(
    name: str, evaluations: Sequence[SavedEvaluation], stem: str, files: Files
) -> list[Block]:
    """Return the first evaluation's picture that can be read: photo, truth, prediction."""
    for each in evaluations:
        picture = open_picture(each.pictures.get("pictures"))
        if picture is not None:
            files[f"{stem}-overlays.png"] = png_bytes(picture)
            seed = ", its first run" if len(evaluations) > 1 else ""
            title = f"Photo, truth, prediction: {name}{seed}"
            return [picture_block(picture, title, title)]
    return []


def classes_section(
    report_data: ReportData, results: Sequence[Result], files: Files
) -> list[Block]:
    """Return class scores, confusions and overlays of runs and of evaluations without a run."""
    blocks: list[Block] = []
    for task in METRICS:
        for conditions, groups in by_conditions(results, task).items():
            arms = {}
            for group in groups:
                scored = [each.evaluation for each in group.results if each.evaluation]
                if scored:
                    arms[group.label] = scored
            where = f"{data_name(conditions.data)}, {conditions.inference} inference"
            blocks += _titled(f"{TITLES[task]}, {where}", arms, files)
    return blocks + _without_runs(report_data, results, files)


def _without_runs(report_data: ReportData, results: Sequence[Result], files: Files) -> list[Block]:
    # An evaluation inside a run is shown with the run.
    counted = {id(each.evaluation) for each in results if each.evaluation}
    groups: dict[tuple[str, str], dict[str, list[SavedEvaluation]]] = {}
    for each in report_data.evaluations:
        task = RUN_KINDS.get(each.kind, "")
        if id(each) in counted or task not in METRICS:
            continue
        # Models are in RUN/model: the run's folder names them.
        name = Path(each.model).parent.name or each.model
        where = f"{data_name(each.data)}, {each.inference} inference"
        groups.setdefault((task, where), {}).setdefault(name, []).append(each)

    blocks: list[Block] = []
    for (task, where), models in groups.items():
        # The scores come before the classes: these models have no row elsewhere.
        title, *rest = _titled(
            f"{TITLES[task]}, {where}",
            models,
            files,
        )
        scores = [_scores_line(task, name, each) for name, each in models.items()]
        blocks += [title, *scores, *rest]
    return blocks


def _scores_line(task: str, name: str, evaluations: Sequence[SavedEvaluation]) -> Text:
    """Return the scores of a model that belongs to no given run."""
    values = []
    for metric in METRICS[task]:
        known = [each.scores[metric.key] for each in evaluations if metric.key in each.scores]
        if known:
            values.append(f"{metric.name} {spread(known, metric.scale)}\u00a0%")
    images = evaluations[0].scores.get("images", 0)
    return Text(f"{name}: {', '.join(values) or 'no scores'}; {images:,.0f} images.")


def _titled(title: str, arms: Evaluations, files: Files) -> list[Block]:
    """Return a title and its blocks; nothing without arms."""
    if not arms:
        return []
    return [
        Heading(title),
        *classes_blocks(
            free_name(files, f"classes {title}"),
            arms,
            files,
        ),
    ]
