"""What lies behind a mean: scores of each class with bars, the confusion as a heat map, and overlays on photos.

An arm is a name and the evaluations of its seeds: class scores are means over them, confusions are added up.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from colorgan.report_charts import PNG_DPI, plain
from colorgan.report_evaluations import Evaluation
from colorgan.report_figures import Files
from colorgan.report_gallery import whole_picture
from colorgan.report_html import Html, data_uri, element, join
from colorgan.report_pictures import open_picture, png_bytes

Arms = Mapping[str, Sequence[Evaluation]]
Matrix = list[list[float]]
MEASURES = {"classifier": "Average precision", "segmenter": "IoU", "detector": "Average precision of boxes"}
MEANING = {
    "classifier": "Row: a class that is in the photo. Column: the class that scored best there.",
    "segmenter": "Row: the true class of a pixel. Column: the predicted one. Void left out.",
}
CELL, FONT, MARGIN = 10, 8, 66  # of the heat map, in units of its drawing
HEAT_RGB = (47, 143, 208)  # seen on white and on black; how opaque tells the share
NUM_PAIRS = 8
MIN_SHARE = 0.005


def classes_blocks(key: str, arms: Arms, files: Files) -> Html:
    """Return class scores, confusions and overlays of arms that were scored under one protocol.

    Args:
        key: begins the names of the files that are put beside the page.
        arms: name -> evaluations, one a seed.
    """
    named = [(name, evaluations, f"{key}-{place}") for place, (name, evaluations) in enumerate(arms.items(), 1)]
    maps = [each for arm in named if (each := _confusion(*arm, files)) is not None]
    overlays = [each for arm in named if (each := _overlays(*arm, files)) is not None]
    abreast = [element("div", *figures, class_="abreast") for figures in (maps, overlays) if figures]
    return join([_class_table(arms), *abreast])


def _class_table(arms: Arms) -> Html | None:
    """A row a class, best first, a bar an arm."""
    means = {name: class_means(evaluations) for name, evaluations in arms.items()}
    means = {name: values for name, values in means.items() if values}
    if not means:
        return None
    head = element("tr", *(element("th", cell, scope="col") for cell in ("Class", *means)))
    rows = [
        element("tr", element("th", name, scope="row"), *(_bar(values.get(name)) for values in means.values()))
        for name in best_first(list(means.values()))
    ]
    whole = element("table", element("thead", head), element("tbody", *rows), class_="bars")
    kind = next((each.kind for evaluations in arms.values() for each in evaluations), "")
    measure = MEASURES.get(kind, "Score")
    seeds = max(len(evaluations) for evaluations in arms.values())
    told = f"{measure} of each class in %" + (", mean over seeds" if seeds > 1 else "") + ", best first."
    return join([element("p", told, class_="soft"), element("div", whole, class_="wide", tabindex=0)])


def best_first(means: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Return the classes by their mean over the arms; those without a score come last."""
    names = dict.fromkeys(name for values in means for name in values)
    known = {name: [v for values in means if (v := values.get(name)) is not None] for name in names}
    return sorted(known, key=lambda name: -statistics.fmean(known[name]) if known[name] else 1.0)


def class_means(evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """Return each class's mean over the evaluations that could score it; None where none could."""
    names = dict.fromkeys(name for each in evaluations for name in each.per_class)
    values = {name: [v for each in evaluations if (v := each.per_class.get(name)) is not None] for name in names}
    return {name: statistics.fmean(found) if found else None for name, found in values.items()}


def _bar(share: float | None) -> Html:
    if share is None:
        return element("td", "–")
    return element("td", f"{100 * share:.1f}", class_="bar", style=f"--share: {100 * share:.1f}%")


def summed(evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], Matrix]:
    """Return the names and the sum of the confusions of the first one's classes; ((), []) without any."""
    found = [each for each in evaluations if each.confusion]
    if not found:
        return (), []
    names = found[0].confusion_names
    alike = [each.confusion for each in found if each.confusion_names == names]
    return names, [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*alike, strict=True)]


def row_shares(matrix: Matrix) -> Matrix:
    """Return each row as shares of its sum; a row of nothing stays zeros."""
    return [[count / total for count in row] if (total := sum(row)) else row for row in matrix]


def _confusion(name: str, evaluations: Sequence[Evaluation], stem: str, files: Files) -> Html | None:
    names, counts = summed(evaluations)
    if not counts:
        return None
    shares = row_shares(counts)
    files[f"{stem}-confusion.png"] = _heat_png(name, names, shares)
    pairs = sorted(((shares[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j), reverse=True)
    most = [f"{names[i]} as {names[j]} {100 * share:.0f} %" for share, i, j in pairs[:NUM_PAIRS] if share > MIN_SHARE]
    width = MARGIN + CELL * len(names)
    caption = element(
        "figcaption",
        f"Confusion, {name}",
        element("span", f"{MEANING.get(evaluations[0].kind, '')} Shades are shares of a row.", class_="note"),
        element("span", f"Most often: {'; '.join(most)}.", class_="note") if most else None,
        _scale(),
    )
    # A class needs some nine pixels for its name to be read: eighty of them scroll by themselves on a phone.
    size = f"--least: {width * 9 // CELL}px; --most: {max(width * 17 // 10, 340)}px"
    drawn = element("div", _heat_svg(names, shares), class_="wide heat", style=size, tabindex=0)
    return element("figure", caption, drawn, class_="confusion")


def _opacity(share: float) -> float:
    """Of a share: its root, so that a few per cent are seen beside ninety."""
    return math.sqrt(max(0.0, min(1.0, share)))


def _scale() -> Html:
    rgb = ", ".join(map(str, HEAT_RGB))
    cells = [
        element("span", f"{100 * share:g} %", style=f"background: rgba({rgb}, {_opacity(share):.2f})")
        for share in (0.01, 0.1, 0.4, 1.0)
    ]
    return element("span", *cells, class_="scale")


def _heat_svg(names: Sequence[str], shares: Matrix) -> Html:
    """One pixel a cell, opaque by share, so that it is read on light and dark; names beside and above."""
    count = len(names)
    picture = Image.new("RGBA", (count, count))
    picture.putdata([(*HEAT_RGB, round(255 * _opacity(share))) for row in shares for share in row])
    side = MARGIN + CELL * count
    rows, columns = [], []
    for place, name in enumerate(names):
        middle = MARGIN + CELL * place + CELL / 2 + FONT / 3
        text = name if len(name) <= 13 else f"{name[:12]}…"
        rows.append(element("text", text, x=MARGIN - 3, y=f"{middle:.1f}", text_anchor="end"))
        columns.append(element("text", text, transform=f"translate({middle:.1f} {MARGIN - 3}) rotate(-90)"))
    uri = data_uri(png_bytes(picture), "image/png")
    image = element("image", href=uri, x=MARGIN, y=MARGIN, width=CELL * count, height=CELL * count)
    frame = element("rect", x=MARGIN, y=MARGIN, width=CELL * count, height=CELL * count, fill="none", class_="frame")
    told = f"confusion matrix of {count} classes"
    return element("svg", image, frame, *rows, *columns, viewBox=f"0 0 {side} {side}", role="img", aria_label=told)


def _heat_png(title: str, names: Sequence[str], shares: Matrix) -> bytes:
    side = 2.0 + 0.16 * len(names)
    figure = Figure(figsize=(side, side), dpi=PNG_DPI, layout="constrained")
    axes = figure.add_subplot()
    opacities = [[_opacity(share) for share in row] for row in shares]
    axes.imshow(opacities, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    labels = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(names)), labels, fontsize=7, parse_math=False)
    axes.set_title(plain(f"{title}: row true, column predicted"), fontsize=9, loc="left", parse_math=False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()


def _overlays(name: str, evaluations: Sequence[Evaluation], stem: str, files: Files) -> Html | None:
    """The first evaluation's picture that can be read: photo, truth, prediction."""
    for each in evaluations:
        picture = open_picture(each.pictures["pictures"]) if "pictures" in each.pictures else None
        if picture is not None:
            files[f"{stem}-overlays.png"] = png_bytes(picture)
            what = f"Photo, truth, prediction: {name}" + (", its first seed" if len(evaluations) > 1 else "")
            return element("figure", element("figcaption", what), whole_picture(picture, what), class_="overlay")
    return None
