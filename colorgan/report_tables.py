"""Sections of the report that are read: scores beside the paper's, recipes, and where everything comes from."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from colorgan.report_html import Html, element, join, table
from colorgan.report_runs import RunFolder, Story, differences
from colorgan.report_scores import (
    METRICS,
    PAPER,
    PAPER_COLOUR_DATA,
    PAPER_COLOUR_IMAGES,
    PAPER_COLOUR_SIZE,
    PAPER_COLOURS,
    PRETRAINED,
    SCRATCH,
    Arm,
    Metric,
    Protocol,
    Published,
    Result,
    by_protocol,
    data_name,
    departures,
    paired_difference,
    spread,
)

Column = tuple[Metric, Protocol, list[Arm]]
SOURCE = "Treneska et al., Sensors 2022, 22(4), 1599"
TITLES = {"classify": "Classification", "segment": "Segmentation"}
COLOUR_ROWS = (
    ("PSNR, mean", "psnr", 2, "\u00a0dB"),
    ("PSNR, minimum", "psnr_min", 2, "\u00a0dB"),
    ("PSNR, maximum", "psnr_max", 2, "\u00a0dB"),
    ("SSIM, mean", "ssim", 3, ""),
    ("SSIM, minimum", "ssim_min", 3, ""),
    ("SSIM, maximum", "ssim_max", 3, ""),
    ("PSNR of the grey pictures", "grey_psnr", 2, "\u00a0dB"),
    ("SSIM of the grey pictures", "grey_ssim", 3, ""),
    ("Chroma error (L1, Lab units)", "chroma_l1", 2, ""),
    ("Chroma error of the grey pictures", "grey_chroma_l1", 2, ""),
    ("Colourfulness", "colourfulness", 1, ""),
    ("Colourfulness of the originals", "original_colourfulness", 1, ""),
)


def scores_section(results: Sequence[Result]) -> Html:
    """Return a table a task: the paper's column, then one column for each protocol and metric of ours."""
    said = (
        "A column is one protocol: numbers of different columns were computed differently and are not to be compared. "
        "± is the sample standard deviation over runs that differ only in seed."
    )
    parts = [element("p", said, class_="soft"), element("h3", "Colouring"), _colour_table(results)]
    for task in METRICS:
        parts += [element("h3", TITLES[task]), _transfer_table(task, by_protocol(results, task))]
    return join(parts)


def _colour_table(results: Sequence[Result]) -> Html:
    columns = [(protocol, arm) for protocol, arms in by_protocol(results, "pretrain").items() for arm in arms]
    header = ["", "Paper (Table 3)", *("Ours: " + ", ".join(_number(r.run) for r in arm.results) for _, arm in columns)]
    rows = [
        ["Data", PAPER_COLOUR_DATA, *(data_name(protocol.data) for protocol, _ in columns)],
        ["Images", f"{PAPER_COLOUR_IMAGES:,}", *(f"{protocol.images:,}" for protocol, _ in columns)],
        ["Size", _size(PAPER_COLOUR_SIZE), *(_size(protocol.size) for protocol, _ in columns)],
        ["Inference", "paper", *(protocol.inference for protocol, _ in columns)],
        ["Seeds", "not told", *(arm.seeds for _, arm in columns)],
    ]
    for name, key, digits, unit in COLOUR_ROWS:
        paper = f"{PAPER_COLOURS[key]:.2f}{unit}" if key in PAPER_COLOURS else "–"
        ours = [spread(list(arm.values(key).values()), digits=digits) for _, arm in columns]
        rows.append([name, paper, *(value + unit if value != "–" else value for value in ours)])
    caption = f"PSNR and SSIM on sRGB in [0, 1] at the network's size, a mean over images. Paper: {SOURCE}."
    gone = None if columns else element("p", "No finished pretraining run with scores was given.", class_="missing")
    return join([gone, table(header, rows, caption)])


def _transfer_table(task: str, protocols: dict[Protocol, list[Arm]]) -> Html:
    paper = PAPER[task]
    columns = [(metric, protocol, arms) for protocol, arms in protocols.items() for metric in METRICS[task]]
    theirs = next(metric for metric in METRICS[task] if metric.key == paper.metric)
    rows = [
        ["Protocol", paper.protocol, *(f"own, on {data_name(p.data)}" for _, p, _ in columns)],
        ["Metric", f"{theirs.name} ({theirs.meaning})", *(f"{m.name} ({m.meaning})" for m, _, _ in columns)],
        ["Data", paper.data, *(data_name(p.data) for _, p, _ in columns)],
        ["Images", f"{paper.images:,}", *(f"{p.images:,}" for _, p, _ in columns)],
        ["Classes", str(paper.classes), *(str(p.classes) for _, p, _ in columns)],
        ["Size", _size(paper.size), *(_size(p.size) for _, p, _ in columns)],
        ["Inference", "paper", *(p.inference for _, p, _ in columns)],
        ["Differs from the paper in", "–", *(_differs(m, p, task) for m, p, _ in columns)],
        *_arm_rows(paper, columns),
    ]
    header = ["", "Paper", *(f"Ours: {metric.name}" for metric, _, _ in columns)]
    gone = None if columns else element("p", f"No finished {TITLES[task].lower()} run was given.", class_="missing")
    caption = f"Paper: {SOURCE}. Pretrained runs start from a generator."
    return join([gone, table(header, rows, caption, class_="long")])


def _arm_rows(paper: Published, columns: Sequence[Column]) -> list[list[str]]:
    """One row an arm, and after each pretrained one the difference; the paper's values stand at the first of each."""
    labels = list(dict.fromkeys(arm.label for _, _, arms in columns for arm in arms))
    rows = []
    for start, name, value in (
        (SCRATCH, "From scratch", paper.scratch),
        (PRETRAINED, "Pretrained", paper.pretrained),
    ):
        for place, label in enumerate([each for each in labels if each.startswith(start)] or [start]):
            title = label.replace(start, name, 1)
            theirs = "–" if place else f"{value:.2f}\u00a0%"
            rows.append([title, theirs, *(_arm_cell(label, column) for column in columns)])
            if start == PRETRAINED:
                gap = "–" if place else f"+{paper.pretrained - paper.scratch:.2f} points"
                rows.append([f"{title} − scratch", gap, *(_gap_cell(label, column) for column in columns)])
    return rows


def _arm_cell(label: str, column: Column) -> str:
    metric, _, arms = column
    arm = next((arm for arm in arms if arm.label == label), None)
    values = arm.values(metric.key) if arm else {}
    if not values or arm is None:
        return "no run"
    runs, plural = ", ".join(_number(each.run) for each in arm.results), "s" if len(arm.results) > 1 else ""
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


def _differs(metric: Metric, protocol: Protocol, task: str) -> str:
    ways = departures(protocol, PAPER[task])
    return ways if metric.key == PAPER[task].metric else f"metric, {ways}"


def recipes_section(story: Story) -> Html:
    """Return what differs between the runs of a kind, and each whole recipe."""
    parts: list[Html] = []
    for kind, name in (("pretrain", "pretraining"), ("classify", "classification"), ("segment", "segmentation")):
        runs = story.of(kind)
        if len(runs) < 2:
            continue
        rows = [[key, *values] for key, values in differences(runs).items()]
        parts.append(element("h3", f"What differs between the {name} runs"))
        parts.append(table(("Setting", *(run.title for run in runs)), rows) if rows else element("p", "Nothing."))
    parts.append(element("h3", "Whole recipes"))
    for run in story.runs:
        text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100)
        parts.append(element("details", element("summary", run.title), element("pre", text)))
    return join(parts)


def provenance_section(story: Story) -> Html:
    """Return digests, versions, checkpoints and events of every run."""
    rows = []
    for run in story.runs:
        digest, source = str(run.state.get("data_digest", "")), str(run.model.get("source_version", ""))
        ranks = run.state.get("world_size", "–")
        rows.append([run.title, digest[:16] or "not known", source[:16] or "not known", str(ranks), str(run.path)])
    parts = [table(("Run", "Training data (sha256)", "Source commit", "Ranks", "Folder"), rows)]
    saved = [
        [run.title, each.name, f"{each.num_bytes / 2**20:,.1f} MiB", "complete" if each.complete else "INCOMPLETE"]
        for run in story.runs
        for each in run.checkpoints
    ]
    parts.append(element("h3", "Checkpoints"))
    parts.append(
        table(("Run", "Checkpoint", "Bytes", "State"), saved) if saved else element("p", "None.", class_="missing")
    )
    events = [
        [run.title, f"{entry['images']:,}", str(entry.get("text", "")), str(entry.get("status", "–"))]
        for run in story.runs
        for entry in run.log
        if entry["kind"] == "event"
    ]
    parts.append(element("h3", "Events"))
    parts.append(
        table(("Run", "Images", "What", "Exit status"), events) if events else element("p", "None.", class_="missing")
    )
    return join(parts)


def markdown(results: Sequence[Result]) -> str:
    """Return the scores as Markdown tables, one for each protocol: for a terminal, a mail, a diff."""
    parts = ["# Scores", "", "Mean and, with several seeds, the sample standard deviation after ±. Page: report.html."]
    for task in ("pretrain", *METRICS):
        for protocol, arms in by_protocol(results, task).items():
            metrics = METRICS.get(task, (Metric("psnr", "PSNR", "", 1.0, "dB"), Metric("ssim", "SSIM", "", 1.0, "")))
            counted = f"{protocol.images:,} images" + (f", {protocol.classes} classes" if protocol.classes else "")
            where = f"{data_name(protocol.data)}, {counted}, {_size(protocol.size)}, {protocol.inference} inference"
            names = [f"{metric.name} {f'({metric.unit})' if metric.unit else ''}".strip() for metric in metrics]
            parts += ["", f"## {_cell(f'{task}: {where}')}", "", f"| start | seeds | {' | '.join(names)} | runs |"]
            parts.append("|---" * (len(names) + 3) + "|")
            for arm in arms:
                values = [spread(list(arm.values(m.key).values()), m.scale, 4 if m.unit == "" else 2) for m in metrics]
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
    return f"{pixels}×{pixels}" if pixels else "not known"
