"""Scores beside the paper's: a table a task in the page, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from colorgan.report.drawing.html import Html, element, join, missing, table
from colorgan.report.final_scores import (
    PRETRAINED,
    SCRATCH,
    Arm,
    Protocol,
    Result,
    by_protocol,
    data_name,
    departures,
    paired_difference,
    spread,
)
from colorgan.report.published import (
    EARLIER,
    METRICS,
    PAPER,
    PAPER_COLOUR_DATA,
    PAPER_COLOUR_IMAGES,
    PAPER_COLOUR_SIZE,
    PAPER_COLOURS,
    TITLES,
    Metric,
    Published,
)
from colorgan.runs.reading import RunFolder

Column = tuple[Metric, Protocol, list[Arm]]
SOURCE = "Treneska et al., Sensors 2022, 22(4), 1599"
COLOUR_ROWS = (
    ("PSNR, mean", "psnr", 2, "\u00a0dB"),
    ("PSNR, minimum", "psnr_min", 2, "\u00a0dB"),
    ("PSNR, maximum", "psnr_max", 2, "\u00a0dB"),
    ("SSIM, mean", "ssim", 3, ""),
    ("SSIM, minimum", "ssim_min", 3, ""),
    ("SSIM, maximum", "ssim_max", 3, ""),
    ("PSNR of the grey pictures", "grey_psnr", 2, "\u00a0dB"),
    ("SSIM of the grey pictures", "grey_ssim", 3, ""),
    ("CIEDE2000", "ciede2000", 2, ""),
    ("CIEDE2000 of the grey pictures", "grey_ciede2000", 2, ""),
    ("Chroma error (Lab units)", "chroma_error", 2, ""),
    ("Chroma error of the grey pictures", "grey_chroma_error", 2, ""),
    ("L1 of a and b (Lab units)", "chroma_l1", 2, ""),
    ("L1 of a and b of the grey pictures", "grey_chroma_l1", 2, ""),
    ("Colourfulness", "colourfulness", 1, ""),
    ("Colourfulness of the originals", "original_colourfulness", 1, ""),
    ("Colourfulness over the originals'", "colourfulness_ratio", 3, ""),
)


def scores_section(results: Sequence[Result], *, elsewhere: bool = False) -> Html:
    """Return a table a task: the paper's column, then one column for each protocol and metric of ours.

    Args:
        elsewhere: transfer has a section of its own; tasks without a run are left out here.
    """
    said = (
        "A column is one protocol: numbers of different columns were computed differently and are not to be compared. "
        "± is the sample standard deviation over runs that differ only in seed."
    )
    parts = [element("p", said, class_="soft"), element("h3", "Colouring"), _color_table(results)]
    for task in METRICS:
        found = by_protocol(results, task)
        if found or (task in PAPER and not elsewhere):
            parts += [element("h3", TITLES[task]), _transfer_table(task, found)]
    return join([*parts, _earlier_table()])


def _earlier_table() -> Html:
    """What the paper quotes of others, apart from everything else."""
    rows = [
        [name, *("–" if value is None else f"{value:.1f}\u00a0%" for value in values)]
        for name, *values in EARLIER
    ]
    said = "Whole VOC, other networks and protocols: not to be compared with the tables above."
    header = ("", "Classification, mAP", "Segmentation, mIoU", "Detection, mAP")
    title = element("summary", "Earlier results that the paper quotes (its Table 2)")
    return element("details", title, table(header, rows, said))


def _color_table(results: Sequence[Result]) -> Html:
    columns = [
        (protocol, arm)
        for protocol, arms in by_protocol(results, "pretrain").items()
        for arm in arms
    ]
    header = [
        "",
        "Paper (Table 3)",
        *("Ours: " + ", ".join(_number(r.run) for r in arm.results) for _, arm in columns),
    ]
    rows = [
        ["Data", PAPER_COLOUR_DATA, *(data_name(protocol.data) for protocol, _ in columns)],
        [
            "Images",
            f"{PAPER_COLOUR_IMAGES:,}",
            *(f"{protocol.images:,}" for protocol, _ in columns),
        ],
        ["Size", _size(PAPER_COLOUR_SIZE), *(_size(protocol.size) for protocol, _ in columns)],
        ["Inference", "paper", *(protocol.inference for protocol, _ in columns)],
        ["Seeds", "not told", *(arm.seeds for _, arm in columns)],
    ]
    for name, key, digits, unit in COLOUR_ROWS:
        paper = f"{PAPER_COLOURS[key]:.2f}{unit}" if key in PAPER_COLOURS else "–"
        ours = [spread(list(arm.values(key).values()), digits=digits) for _, arm in columns]
        if key in PAPER_COLOURS or any(value != "–" for value in ours):
            rows.append([name, paper, *(value + unit if value != "–" else value for value in ours)])
    caption = f"PSNR and SSIM on sRGB in [0, 1], a mean over images. Paper: {SOURCE}."
    gone = None if columns else missing("No finished pretraining run with scores was given.")
    return join([gone, table(header, rows, caption)])


def _transfer_table(task: str, protocols: dict[Protocol, list[Arm]]) -> Html:
    """The paper's column, where it has the task, then a column for each protocol and metric that a run has."""
    paper = PAPER.get(task)
    columns = [
        (metric, protocol, arms)
        for protocol, arms in protocols.items()
        for metric in METRICS[task]
        if any(arm.values(metric.key) for arm in arms)
    ]
    rows = [
        ["Protocol", *(f"own, on {data_name(p.data)}" for _, p, _ in columns)],
        ["Metric", *(f"{m.name} ({m.meaning})" for m, _, _ in columns)],
        ["Data", *(data_name(p.data) for _, p, _ in columns)],
        ["Images", *(f"{p.images:,}" for _, p, _ in columns)],
        ["Classes", *(str(p.classes) for _, p, _ in columns)],
        ["Size", *(_size(p.size) for _, p, _ in columns)],
        ["Inference", *(p.inference for _, p, _ in columns)],
    ]
    if paper is not None:
        rows = [
            [row[0], told, *row[1:]]
            for row, told in zip(rows, _paper_cells(paper, task), strict=True)
        ]
        rows.append(
            ["Differs from the paper in", "–", *(_differs(m, p, paper) for m, p, _ in columns)]
        )
    rows += _arm_rows(paper, columns)
    header = [
        "",
        *(["Paper"] if paper else []),
        *(f"Ours: {metric.name}" for metric, _, _ in columns),
    ]
    gone = None if columns else missing(f"No finished {TITLES[task].lower()} run was given.")
    caption = f"{f'Paper: {SOURCE}. ' if paper else ''}Pretrained runs start from a generator."
    return join([gone, table(header, rows, caption, class_="long")])


def _paper_cells(paper: Published, task: str) -> list[str]:
    theirs = next(metric for metric in METRICS[task] if metric.key == paper.metric)
    counts = [f"{paper.images:,}", str(paper.classes), _size(paper.size), "paper"]
    return [paper.protocol, f"{theirs.name} ({theirs.meaning})", paper.data, *counts]


def _arm_rows(paper: Published | None, columns: Sequence[Column]) -> list[list[str]]:
    """One row an arm, and after each pretrained one the difference; the paper's values stand at the first of each."""
    labels = list(dict.fromkeys(arm.label for _, _, arms in columns for arm in arms))
    rows = []
    for start, name in ((SCRATCH, "From scratch"), (PRETRAINED, "Pretrained")):
        for place, label in enumerate(
            [each for each in labels if each.startswith(start)] or [start]
        ):
            title = label.replace(start, name, 1)
            value, gap = _paper_values(paper if place == 0 else None, start)
            theirs = [[value], [gap]] if paper else [[], []]
            rows.append([title, *theirs[0], *(_arm_cell(label, column) for column in columns)])
            if start == PRETRAINED:
                rows.append(
                    [
                        f"{title} − scratch",
                        *theirs[1],
                        *(_gap_cell(label, column) for column in columns),
                    ]
                )
    return rows


def _paper_values(paper: Published | None, start: str) -> tuple[str, str]:
    """Return the paper's score and its difference as text."""
    if paper is None:
        return "–", "–"
    value = paper.scratch if start == SCRATCH else paper.pretrained
    return f"{value:.2f}\u00a0%", f"+{paper.pretrained - paper.scratch:.2f} points"


def _arm_cell(label: str, column: Column) -> str:
    metric, _, arms = column
    arm = next((arm for arm in arms if arm.label == label), None)
    values = arm.values(metric.key) if arm else {}
    if not values or arm is None:
        return "no run"
    runs, plural = (
        ", ".join(_number(each.run) for each in arm.results),
        "s" if len(arm.results) > 1 else "",
    )
    score = f"{spread(list(values.values()), metric.scale)}\u00a0{metric.unit}"
    return f"{score} (seed{plural} {arm.seeds}; run{plural} {runs})"


def _gap_cell(label: str, column: Column) -> str:
    metric, _, arms = column
    pretrained = next((arm for arm in arms if arm.label == label), None)
    scratch = [arm for arm in arms if arm.label.startswith(SCRATCH)]
    if pretrained is None or len(scratch) != 1:
        return "–"
    gap, words = paired_difference(scratch[0], pretrained, metric)
    return f"{gap} points ({words})" if gap != "–" else words


def _differs(metric: Metric, protocol: Protocol, paper: Published) -> str:
    ways = departures(protocol, paper)
    return ways if metric.key == paper.metric else f"metric, {ways}"


def markdown(results: Sequence[Result]) -> str:
    """Return the scores as Markdown tables, one for each protocol: for a terminal, a mail, a diff."""
    parts = [
        "# Scores",
        "",
        "Mean and, with several seeds, the sample standard deviation after ±. Page: report.html.",
    ]
    for task in ("pretrain", *METRICS):
        for protocol, arms in by_protocol(results, task).items():
            known = METRICS.get(
                task, (Metric("psnr", "PSNR", "", 1.0, "dB"), Metric("ssim", "SSIM", "", 1.0, ""))
            )
            metrics = [metric for metric in known if any(arm.values(metric.key) for arm in arms)]
            counted = f"{protocol.images:,} images" + (
                f", {protocol.classes} classes" if protocol.classes else ""
            )
            where = f"{data_name(protocol.data)}, {counted}, {_size(protocol.size)}, {protocol.inference} inference"
            names = [
                f"{metric.name} {f'({metric.unit})' if metric.unit else ''}".strip()
                for metric in metrics
            ]
            parts += [
                "",
                f"## {_cell(f'{task}: {where}')}",
                "",
                f"| start | seeds | {' | '.join(names)} | runs |",
            ]
            parts.append("|---" * (len(names) + 3) + "|")
            for arm in arms:
                values = [
                    spread(list(arm.values(m.key).values()), m.scale, 4 if m.unit == "" else 2)
                    for m in metrics
                ]
                runs = ", ".join(each.run.name for each in arm.results)
                start = "–" if task == "pretrain" else arm.label
                parts.append(f"| {' | '.join(map(_cell, (start, arm.seeds, *values, runs)))} |")
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text that cannot end a Markdown table's cell, row or page."""
    clean = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return clean.replace("<", "&lt;")


def _number(run: RunFolder) -> str:
    return str(run.number)


def _size(pixels: int) -> str:
    if pixels < 0:
        return "each photo's own"
    return f"{pixels}×{pixels}" if pixels else "not known"
