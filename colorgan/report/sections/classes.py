"""What lies behind a mean: scores of each class with bars, the confusion as a heat map, and overlays on photos.

An arm is a name and the evaluations of its seeds: class scores are means over them, confusions are added up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from colorgan.evaluation.record import SavedEvaluation
from colorgan.report.drawing.charts import plain
from colorgan.report.drawing.figures import Files, free_name
from colorgan.report.drawing.html import Html, data_uri, element, join
from colorgan.report.drawing.photos import open_picture, png_bytes
from colorgan.report.final_scores import MODEL_KINDS, Result, by_protocol, data_name, spread
from colorgan.report.published import METRICS, TITLES
from colorgan.report.report_data import ReportData
from colorgan.report.sections.gallery import whole_picture

Arms = Mapping[str, Sequence[SavedEvaluation]]
Matrix = list[list[float]]
MEASURES = {
    "classifier": "Average precision",
    "segmenter": "IoU",
    "detector": "Average precision of boxes",
}
MEANING = {
    "classifier": "Row: a class that is in the photo. Column: the class that scored best there.",
    "segmenter": "Row: the true class of a pixel. Column: the predicted one. Void left out.",
}
CELL, FONT, MARGIN = 10, 8, 66  # of the heat map, in units of its drawing
HEAT_RGB = (47, 143, 208)  # seen on white and on black; how opaque tells the share
PNG_CELL_PX, PNG_FONT_PX, MAX_LABEL = 16, 12, 24
NUM_PAIRS = 8
MIN_SHARE = 0.005


def classes_blocks(key: str, arms: Arms, files: Files) -> Html:
    """Return class scores, confusions and overlays of arms that were scored under one protocol.

    Args:
        key: begins the names of the files that are put beside the page.
        arms: name -> evaluations, one a seed.
    """
    named = [
        (name, evaluations, f"{key}-{place}")
        for place, (name, evaluations) in enumerate(arms.items(), 1)
    ]
    maps = [each for arm in named if (each := _confusion(*arm, files)) is not None]
    overlays = [each for arm in named if (each := _overlays(*arm, files)) is not None]
    abreast = [
        element("div", *figures, class_="abreast") for figures in (maps, overlays) if figures
    ]
    return join([_class_table(arms), *abreast])


def _class_table(arms: Arms) -> Html | None:
    """A row a class, best first, a bar an arm."""
    means = {name: class_means(evaluations) for name, evaluations in arms.items()}
    means = {name: values for name, values in means.items() if values}
    if not means:
        return None
    head = element("tr", *(element("th", cell, scope="col") for cell in ("Class", *means)))
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(_bar(values.get(name)) for values in means.values()),
        )
        for name in best_first(list(means.values()))
    ]
    whole = element("table", element("thead", head), element("tbody", *rows), class_="bars")
    kind = next((each.kind for evaluations in arms.values() for each in evaluations), "")
    measure = MEASURES.get(kind, "Score")
    seeds = max(len(evaluations) for evaluations in arms.values())
    told = (
        f"{measure} of each class in %"
        + (", mean over seeds" if seeds > 1 else "")
        + ", best first."
    )
    return join(
        [element("p", told, class_="soft"), element("div", whole, class_="wide", tabindex=0)]
    )


def best_first(means: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Return the classes by their mean over the arms; those without a score come last."""
    names = dict.fromkeys(name for values in means for name in values)
    known = {name: [v for values in means if (v := values.get(name)) is not None] for name in names}
    return sorted(known, key=lambda name: -statistics.fmean(known[name]) if known[name] else 1.0)


def class_means(evaluations: Sequence[SavedEvaluation]) -> dict[str, float | None]:
    """Return each class's mean over the evaluations that could score it; None where none could."""
    names = dict.fromkeys(name for each in evaluations for name in each.per_class)
    values = {
        name: [v for each in evaluations if (v := each.per_class.get(name)) is not None]
        for name in names
    }
    return {name: statistics.fmean(found) if found else None for name, found in values.items()}


def _bar(share: float | None) -> Html:
    if share is None:
        return element("td", "–")
    return element("td", f"{100 * share:.1f}", class_="bar", style=f"--share: {100 * share:.1f}%")


def summed(evaluations: Sequence[SavedEvaluation]) -> tuple[tuple[str, ...], Matrix]:
    """Return the names and the sum of the confusions of the first one's classes; ((), []) without any."""
    found = [each for each in evaluations if each.confusion]
    if not found:
        return (), []
    names = found[0].confusion_names
    alike = [each.confusion for each in found if each.confusion_names == names]
    return names, [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*alike, strict=True)
    ]


def row_shares(matrix: Matrix) -> Matrix:
    """Return each row as shares of its sum; a row of nothing stays zeros."""
    return [[count / total for count in row] if (total := sum(row)) else row for row in matrix]


def _confusion(
    name: str, evaluations: Sequence[SavedEvaluation], stem: str, files: Files
) -> Html | None:
    names, counts = summed(evaluations)
    if not counts:
        return None
    shares = row_shares(counts)
    files[f"{stem}-confusion.png"] = _heat_png(name, names, shares)
    pairs = sorted(
        ((shares[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j),
        reverse=True,
    )
    most = [
        f"{names[i]} as {names[j]} {100 * share:.0f} %"
        for share, i, j in pairs[:NUM_PAIRS]
        if share > MIN_SHARE
    ]
    width = MARGIN + CELL * len(names)
    caption = element(
        "figcaption",
        f"Confusion, {name}",
        element(
            "span",
            f"{MEANING.get(evaluations[0].kind, '')} Shades are shares of a row.",
            class_="note",
        ),
        element("span", f"Most often: {'; '.join(most)}.", class_="note") if most else None,
        _scale(),
    )
    # A class needs eleven pixels for its name to be read: eighty of them scroll by themselves on a phone.
    size = f"--least: {width * 11 // CELL}px; --most: {max(width * 17 // 10, 340)}px"
    drawn = element("div", _heat_svg(names, shares), class_="wide heat", style=size, tabindex=0)
    return element("figure", caption, drawn, class_="confusion")


def _opacity(share: float) -> float:
    """Of a share: its root, so that a few per cent are seen beside ninety."""
    return math.sqrt(max(0.0, min(1.0, share)))


def _scale() -> Html:
    rgb = ", ".join(map(str, HEAT_RGB))
    cells = [
        element(
            "span", f"{100 * share:g} %", style=f"background: rgba({rgb}, {_opacity(share):.2f})"
        )
        for share in (0.01, 0.1, 0.4, 1.0)
    ]
    return element("span", *cells, class_="scale")


def _heat_svg(names: Sequence[str], shares: Matrix) -> Html:
    """One pixel a cell, opaque by share, so that it is read on light and dark; names beside and above."""
    count = len(names)
    side = MARGIN + CELL * count
    rows, columns = [], []
    for place, name in enumerate(names):
        middle = MARGIN + CELL * place + CELL / 2 + FONT / 3
        text = name if len(name) <= 13 else f"{name[:12]}…"
        rows.append(element("text", text, x=MARGIN - 3, y=f"{middle:.1f}", text_anchor="end"))
        columns.append(
            element("text", text, transform=f"translate({middle:.1f} {MARGIN - 3}) rotate(-90)")
        )
    uri = data_uri(png_bytes(_heat_cells(shares)), "image/png")
    image = element("image", href=uri, x=MARGIN, y=MARGIN, width=CELL * count, height=CELL * count)
    frame = element(
        "rect",
        x=MARGIN,
        y=MARGIN,
        width=CELL * count,
        height=CELL * count,
        fill="none",
        class_="frame",
    )
    told = f"confusion matrix of {count} classes"
    return element(
        "svg",
        image,
        frame,
        *rows,
        *columns,
        viewBox=f"0 0 {side} {side}",
        role="img",
        aria_label=told,
    )


def _heat_cells(shares: Matrix) -> Image.Image:
    """One pixel a cell."""
    picture = Image.new("RGBA", (len(shares), len(shares)))
    picture.putdata([(*HEAT_RGB, round(255 * _opacity(share))) for row in shares for share in row])
    return picture


def _heat_png(title: str, names: Sequence[str], shares: Matrix) -> bytes:
    """The same map with names on white, for the file beside the page."""
    font = ImageFont.load_default(size=PNG_FONT_PX)
    labels = [plain(name)[:MAX_LABEL] for name in names]
    margin = 2 * PNG_FONT_PX + max(round(font.getlength(label)) for label in labels)
    side = margin + PNG_CELL_PX * len(names) + PNG_FONT_PX
    sheet = Image.new("RGB", (max(side, 420), side + 2 * PNG_FONT_PX), "white")
    draw = ImageDraw.Draw(sheet)
    map_px = PNG_CELL_PX * len(names)
    white = Image.new("RGBA", (len(names), len(names)), "white")
    heat = Image.alpha_composite(white, _heat_cells(shares)).resize(
        (map_px, map_px), Image.Resampling.NEAREST
    )
    top = margin + 2 * PNG_FONT_PX
    sheet.paste(heat.convert("RGB"), (margin, top))
    draw.rectangle((margin - 1, top - 1, margin + map_px, top + map_px), outline="grey")
    draw.text((4, 4), plain(f"{title[:60]}: row true, column predicted"), fill="black", font=font)
    for place, label in enumerate(labels):
        middle = PNG_CELL_PX * place + PNG_CELL_PX // 2
        draw.text((margin - 6, top + middle), label, fill="black", font=font, anchor="rm")
        upright = Image.new("RGB", (margin, PNG_CELL_PX), "white")
        ImageDraw.Draw(upright).text(
            (4, PNG_CELL_PX // 2), label, fill="black", font=font, anchor="lm"
        )
        sheet.paste(
            upright.rotate(90, expand=True), (margin + PNG_CELL_PX * place, top - margin - 2)
        )
    return png_bytes(sheet)


def _overlays(
    name: str, evaluations: Sequence[SavedEvaluation], stem: str, files: Files
) -> Html | None:
    """The first evaluation's picture that can be read: photo, truth, prediction."""
    for each in evaluations:
        picture = open_picture(each.pictures["pictures"]) if "pictures" in each.pictures else None
        if picture is not None:
            files[f"{stem}-overlays.png"] = png_bytes(picture)
            what = f"Photo, truth, prediction: {name}" + (
                ", its first seed" if len(evaluations) > 1 else ""
            )
            return element(
                "figure",
                element("figcaption", what),
                whole_picture(picture, what),
                class_="overlay",
            )
    return None


def classes_section(report_data: ReportData, results: Sequence[Result], files: Files) -> Html:
    """Return class scores, confusions and overlays of each protocol, an arm of runs beside the others."""
    parts: list[Html] = []
    for task in METRICS:
        for protocol, arms in by_protocol(results, task).items():
            found = {
                arm.label: [each.evaluation for each in arm.results if each.evaluation]
                for arm in arms
            }
            where = f"{data_name(protocol.data)}, {protocol.inference} inference"
            parts += _block(
                f"{TITLES[task]}, {where}",
                {name: each for name, each in found.items() if each},
                files,
            )
    counted = {id(each.evaluation) for each in results if each.evaluation}
    groups: dict[tuple[str, str], dict[str, list[SavedEvaluation]]] = {}
    for each in report_data.evaluations:
        task = MODEL_KINDS.get(each.kind, "")
        if id(each) not in counted and task in METRICS:
            where = f"{data_name(each.data)}, {each.inference} inference"
            groups.setdefault((task, where), {}).setdefault(_model_name(each), []).append(each)
    for (task, where), models in groups.items():
        content = _block(f"{TITLES[task]}, {where}", models, files)
        parts += [
            *content[:1],
            *(_told(task, name, each) for name, each in models.items()),
            *content[1:],
        ]
    return join(parts)


def _told(task: str, name: str, evaluations: Sequence[SavedEvaluation]) -> Html:
    """A line of the scores of a model that no given run has."""
    found = {
        metric: [e.scores[metric.key] for e in evaluations if metric.key in e.scores]
        for metric in METRICS[task]
    }
    values = [
        f"{metric.name} {spread(known, metric.scale)}\u00a0%"
        for metric, known in found.items()
        if known
    ]
    images = evaluations[0].scores.get("images", 0)
    return element("p", f"{name}: {', '.join(values) or 'no scores'}; {images:,.0f} pictures.")


def _block(title: str, arms: dict[str, list[SavedEvaluation]], files: Files) -> list[Html]:
    """A title and what there is to show; nothing without arms."""
    return (
        [element("h3", title), classes_blocks(free_name(files, f"classes {title}"), arms, files)]
        if arms
        else []
    )


def _model_name(each: SavedEvaluation) -> str:
    """The run's folder, as models lie in RUN/model; evaluations of one model under one protocol are one arm."""
    return Path(each.model).parent.name or each.model
