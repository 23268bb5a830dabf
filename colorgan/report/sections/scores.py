"""Scores beside the paper's: a table per task in the page, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colorgan.config.recipe import SCRATCH
from colorgan.report.blocks import Block, Folded, Heading, Table, Text
from colorgan.report.final_scores import (
    PRETRAINED,
    Conditions,
    Result,
    SeedGroup,
    by_conditions,
    color_departures,
    data_name,
    departures,
    paired_difference,
    size_text,
    spread,
)
from colorgan.report.published import (
    EARLIER,
    METRICS,
    PAPER,
    PAPER_COLOR_DATA,
    PAPER_COLOR_IMAGES,
    PAPER_COLOR_SIZE,
    PAPER_COLORS,
    TITLES,
    Metric,
    Published,
)

# Scores by two metrics are two columns, also of one run.
Column = tuple[Metric, Conditions, list[SeedGroup]]
SOURCE = "Treneska et al., Sensors 2022, 22(4), 1599"
NO_VALUE = "–"
COLOR_ROWS = (
    ("PSNR, mean", "psnr", 2, "\u00a0dB"),
    ("PSNR, minimum", "psnr_min", 2, "\u00a0dB"),
    ("PSNR, maximum", "psnr_max", 2, "\u00a0dB"),
    ("SSIM, mean", "ssim", 3, ""),
    ("SSIM, minimum", "ssim_min", 3, ""),
    ("SSIM, maximum", "ssim_max", 3, ""),
    ("PSNR of the grey images", "grey_psnr", 2, "\u00a0dB"),
    ("SSIM of the grey images", "grey_ssim", 3, ""),
    ("CIEDE2000", "ciede2000", 2, ""),
    ("CIEDE2000 of the grey images", "grey_ciede2000", 2, ""),
    ("Chroma error (Lab units)", "chroma_error", 2, ""),
    ("Chroma error of the grey images", "grey_chroma_error", 2, ""),
    ("L1 of a and b (Lab units)", "chroma_l1", 2, ""),
    ("L1 of a and b of the grey images", "grey_chroma_l1", 2, ""),
    ("Colorfulness", "colourfulness", 1, ""),
    ("Colorfulness of the originals", "original_colourfulness", 1, ""),
    ("Colorfulness over the originals'", "colourfulness_ratio", 3, ""),
    ("Near-grey images among them", "near_grey_images", 0, ""),
    ("PSNR without near-grey images", "psnr_without_near_grey", 2, "\u00a0dB"),
    ("PSNR of the grey images, without", "grey_psnr_without_near_grey", 2, "\u00a0dB"),
    ("SSIM without near-grey images", "ssim_without_near_grey", 3, ""),
    ("SSIM of the grey images, without", "grey_ssim_without_near_grey", 3, ""),
    ("CIEDE2000 without near-grey images", "ciede2000_without_near_grey", 2, ""),
    ("CIEDE2000 of the grey images, without", "grey_ciede2000_without_near_grey", 2, ""),
    ("L1 of a and b without near-grey images", "chroma_l1_without_near_grey", 2, ""),
    ("L1 of a and b of the grey images, without", "grey_chroma_l1_without_near_grey", 2, ""),
)


def scores_section(results: Sequence[Result], *, elsewhere: bool = False) -> list[Block]:
    """Return a table per task: the paper's column, then a column per protocol and metric of ours.

    Args:
        results: final scores of the runs.
        elsewhere: transfer has its own section; tasks without a run are left out here.
    """
    note = (
        "A column is one protocol: numbers of different columns were computed differently and are "
        "not comparable. ± is the sample standard deviation over runs that differ only in seed."
    )
    blocks: list[Block] = [Text(note, "soft"), Heading("Coloring"), _color_table(results)]
    for task in METRICS:
        found = by_conditions(results, task)
        # The paper's column stays without a run of ours, so that the gap shows.
        if found or (task in PAPER and not elsewhere):
            blocks += [Heading(TITLES[task]), *_transfer_table(task, found)]
    return [*blocks, _earlier_table()]


def _earlier_table() -> Block:
    """Return what the paper quotes of others, apart from everything else."""
    rows = []
    for name, *values in EARLIER:
        cells = [NO_VALUE if value is None else f"{value:.1f}\u00a0%" for value in values]
        rows.append([name, *cells])
    caption = "Whole VOC, other networks and protocols: not comparable with the tables above."
    header = (
        "",
        "Classification, mAP",
        "Segmentation, mIoU",
        "Detection, mAP",
    )
    title = "Earlier results that the paper quotes (its Table 2)"
    return Folded(title, [Table(header, rows, caption)])


def _color_table(results: Sequence[Result]) -> Block:
    # A column per recipe and set: seeds are averaged, nothing else.
    columns = []
    for conditions, groups in by_conditions(results, "pretrain").items():
        # A control that reconstructs luminance has no scores of color.
        columns += [(conditions, group) for group in groups if group.values("psnr")]

    header = ["", "Paper (Table 3)", *(f"Ours: {group.numbers}" for _, group in columns)]
    facts = {
        "Data": (PAPER_COLOR_DATA, [data_name(each.data) for each, _ in columns]),
        "Images": (f"{PAPER_COLOR_IMAGES:,}", [f"{each.images:,}" for each, _ in columns]),
        "Size": (size_text(PAPER_COLOR_SIZE), [size_text(each.size) for each, _ in columns]),
        "Inference": ("paper", [each.inference for each, _ in columns]),
        "Seeds": ("not reported", [group.seeds for _, group in columns]),
        "Differs from the paper in": (NO_VALUE, [color_departures(each) for each, _ in columns]),
    }
    rows = [[name, paper, *ours] for name, (paper, ours) in facts.items()]
    for name, key, digits, unit in COLOR_ROWS:
        paper = f"{PAPER_COLORS[key]:.2f}{unit}" if key in PAPER_COLORS else NO_VALUE
        cells = []
        for _, group in columns:
            value = spread(list(group.values(key).values()), digits=digits)
            cells.append(value if value == NO_VALUE else value + unit)
        # Rows that nobody has are left out; the paper's stay, so that gaps show.
        if key in PAPER_COLORS or any(cell != NO_VALUE for cell in cells):
            rows.append([name, paper, *cells])
    caption = (
        "PSNR and SSIM on sRGB in [0, 1], a mean over all images unless a row says without "
        f"near-grey ones, photos of almost no color. Paper: {SOURCE}."
    )
    return Table(header, rows, caption, "long", sortable=False)


def _transfer_table(task: str, found: Mapping[Conditions, list[SeedGroup]]) -> list[Block]:
    """Return the paper's column, if it has the task, and a column per protocol and metric."""
    paper = PAPER.get(task)
    columns: list[Column] = []
    for conditions, groups in found.items():
        for metric in METRICS[task]:
            if any(group.values(metric.key) for group in groups):
                columns.append((metric, conditions, groups))

    rows = [
        [name]
        for name in (
            "Protocol",
            "Metric",
            "Data",
            "Images",
            "Classes",
            "Size",
            "Inference",
        )
    ]
    if paper is not None:
        rows = [
            [*row, cell]
            for row, cell in zip(
                rows,
                _paper_cells(paper, task),
                strict=True,
            )
        ]
    for metric, conditions, _ in columns:
        cells = _column_cells(metric, conditions)
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    # Said in the table, so that no number is read beside the paper's without its conditions.
    if paper is not None:
        ways = [_differs(metric, conditions, paper) for metric, conditions, _ in columns]
        rows.append(["Differs from the paper in", NO_VALUE, *ways])
    rows += _start_rows(paper, columns)

    header = [
        "",
        *(["Paper"] if paper else []),
        *(f"Ours: {metric.name}" for metric, _, _ in columns),
    ]
    source = f"Paper: {SOURCE}. " if paper else ""
    caption = f"{source}Pretrained runs start from a generator."
    table = Table(header, rows, caption, "long", sortable=False)
    if columns:
        return [table]
    return [Text(f"No finished {TITLES[task].lower()} run was given.", "missing"), table]


def _paper_cells(paper: Published, task: str) -> list[str]:
    metric = next(metric for metric in METRICS[task] if metric.key == paper.metric)
    counts = [
        f"{paper.images:,}",
        str(paper.classes),
        size_text(paper.size),
        "paper",
    ]
    return [
        paper.protocol,
        f"{metric.name} ({metric.meaning})",
        paper.data,
        *counts,
    ]


def _column_cells(metric: Metric, conditions: Conditions) -> list[str]:
    name = data_name(conditions.data)
    counts = [f"{conditions.images:,}", str(conditions.classes), size_text(conditions.size)]
    title = f"{metric.name} ({metric.meaning})"
    return [
        f"own, on {name}",
        title,
        name,
        *counts,
        conditions.inference,
    ]


def _start_rows(paper: Published | None, columns: Sequence[Column]) -> list[list[str]]:
    """Return a row per start, and after each pretrained one the difference.

    The paper's values are in the first row of each kind of start.
    """
    labels = list(dict.fromkeys(group.label for _, _, groups in columns for group in groups))
    rows = []
    for start, name in ((SCRATCH, "From scratch"), (PRETRAINED, "Pretrained")):
        value, gap = _paper_values(paper, start)
        for label in [each for each in labels if each.startswith(start)] or [start]:
            title = label.replace(start, name, 1)
            rows.append([title, *value, *(_start_cell(label, column) for column in columns)])
            if start == PRETRAINED:
                gaps = [_gap_cell(label, column) for column in columns]
                rows.append([f"{title} − scratch", *gap, *gaps])
            # The paper has one row of each kind: recipes of ours that differ follow without it.
            if paper is not None:
                value, gap = [NO_VALUE], [NO_VALUE]
    return rows


def _paper_values(paper: Published | None, start: str) -> tuple[list[str], list[str]]:
    """Return the paper's score and its difference, as cells; none without a paper's column."""
    if paper is None:
        return [], []
    value = paper.scratch if start == SCRATCH else paper.pretrained
    return [f"{value:.2f}\u00a0%"], [f"+{paper.pretrained - paper.scratch:.2f} points"]


def _start_cell(label: str, column: Column) -> str:
    metric, _, groups = column
    group = next((group for group in groups if group.label == label), None)
    values = group.values(metric.key) if group else {}
    if not values or group is None:
        return "no run"

    plural = "s" if len(group.results) > 1 else ""
    score = f"{spread(list(values.values()), metric.scale)}\u00a0{metric.unit}"
    return f"{score} (seed{plural} {group.seeds}; run{plural} {group.numbers})"


def _gap_cell(label: str, column: Column) -> str:
    metric, _, groups = column
    pretrained = next((group for group in groups if group.label == label), None)
    # Two recipes from scratch leave open which one is meant.
    scratch = [group for group in groups if group.label.startswith(SCRATCH)]
    if pretrained is None or len(scratch) != 1:
        return NO_VALUE
    gap, words = paired_difference(scratch[0], pretrained, metric)
    return f"{gap} points ({words})" if gap != NO_VALUE else words


def _differs(metric: Metric, conditions: Conditions, paper: Published) -> str:
    ways = departures(conditions, paper)
    return ways if metric.key == paper.metric else f"metric, {ways}"


def markdown(results: Sequence[Result]) -> str:
    """Return the scores as Markdown tables, one per protocol: for a terminal, a mail, a diff."""
    lines = [
        "# Scores",
        "",
        "Mean and, with several seeds, the sample standard deviation after ±. Page: report.html.",
    ]
    for task in ("pretrain", *METRICS):
        for conditions, groups in by_conditions(results, task).items():
            lines += _markdown_table(task, conditions, groups)
    return "\n".join(lines) + "\n"


def _markdown_table(task: str, conditions: Conditions, groups: Sequence[SeedGroup]) -> list[str]:
    colors = (
        Metric(
            "psnr",
            "PSNR",
            "",
            1.0,
            "dB",
        ),
        Metric(
            "ssim",
            "SSIM",
            "",
            1.0,
            "",
        ),
    )
    metrics = []
    for metric in METRICS.get(task, colors):
        if any(group.values(metric.key) for group in groups):
            metrics.append(metric)

    counted = f"{conditions.images:,} images"
    if conditions.classes:
        counted += f", {conditions.classes} classes"
    where = f"{data_name(conditions.data)}, {counted}, {size_text(conditions.size)}"
    title = f"{task}: {where}, {conditions.inference} inference"
    names = [f"{metric.name} ({metric.unit})" if metric.unit else metric.name for metric in metrics]
    rows = [
        [
            "start",
            "seeds",
            *names,
            "runs",
        ],
        ["---"] * (len(names) + 3),
    ]
    for group in groups:
        values = []
        for metric in metrics:
            digits = 2 if metric.unit else 4
            # More digits without a unit: those scores lie in [0, 1].
            values.append(
                spread(
                    list(group.values(metric.key).values()),
                    metric.scale,
                    digits,
                )
            )
        runs = ", ".join(each.run.name for each in group.results)
        start = NO_VALUE if task == "pretrain" else group.label
        rows.append([start, group.seeds, *values, runs])
    return ["", f"## {markdown_text(title)}", "", *markdown_rows(rows)]


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a Markdown table."""
    return [f"| {' | '.join(map(markdown_text, row))} |" for row in rows]


def markdown_text(text: str) -> str:
    """Return text that cannot end a Markdown table's cell, row or page."""
    clean = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return clean.replace("<", "&lt;")
