"""The report's section on transfer: a study's protocols, each with its own table, chart and verdict.

The paper's protocols and the field's stand apart, and no two protocols share a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colorgan.evaluation.record import SavedEvaluation
from colorgan.probes.record import Probe
from colorgan.report.drawing.charts import draw_study
from colorgan.report.drawing.figures import Files, chart_figure, free_name
from colorgan.report.drawing.html import Html, element, join, table
from colorgan.report.published import METRICS, PAPER, Published
from colorgan.report.report_data import ReportData
from colorgan.report.sections.classes import classes_blocks
from colorgan.report.sections.finetuning import arm_curves
from colorgan.report.sections.probes import probe_tables
from colorgan.runs.reading import RunFolder, short_names
from colorgan.study.record import ArmValues, Comparison, StudyArm, StudyProtocol

NO_VALUE = "–"


def transfer_section(report_data: ReportData, files: Files) -> Html:
    """Return every study's protocols: the paper's, then the field's; then probes that were given by themselves."""
    parts: list[Html] = []
    for study in report_data.studies:
        several = (
            f": {study.path.name}"
            if len(report_data.studies) > 1 and not study.of_single_runs
            else ""
        )
        others = "Runs by their own recipes" if study.of_single_runs else "The field's protocols"
        for title, of_the_paper in (("The paper's protocols", True), (others, False)):
            protocols = [each for each in study.protocols if each.of_the_paper is of_the_paper]
            if protocols:
                parts.append(element("h3", title + several))
                parts += [_protocol(each, files) for each in protocols]
    if report_data.probes:
        parts += [element("h3", "Frozen features"), _probes(report_data.probes)]
    return join(parts)


def transfer_cards(report_data: ReportData) -> list[Html]:
    """Return a card for each protocol of the studies with a comparison: what it shows, in a glance."""
    return [
        _card(protocol, protocol.comparisons[0])
        for study in report_data.studies
        for protocol in study.protocols
        if protocol.comparisons
    ]


def transfer_markdown(report_data: ReportData) -> str:
    """Return the studies' tables as Markdown."""
    lines: list[str] = []
    for protocol in (each for study in report_data.studies for each in study.protocols):
        lines += [
            "",
            f"## {_plain(protocol.title)}: {_plain(protocol.metric_title)}",
            "",
            _plain(_counts(protocol)),
            "",
        ]
        lines += ["| arm | mean (%) | standard deviation | by seed |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_plain, _arm_row(arm)))} |" for arm in protocol.arms]
        lines += ["", *(f"- {_plain(comparison_text(each))}" for each in protocol.comparisons)]
        if protocol.further:
            names = ["score", *(arm.name for arm in protocol.arms)]
            rows = [names, ["---"] * len(names), *_further_rows(protocol)]
            lines += ["", *(f"| {' | '.join(map(_plain, row))} |" for row in rows)]
    return "\n".join(lines) + "\n" if lines else ""


def comparison_text(each: Comparison) -> str:
    """Return a difference with its interval and its verdict."""
    verdict = f": {each.verdict}" if each.verdict else ""
    return f"{each.arm} − {each.against}: {points(each.difference)}{_interval(each)}{verdict}"


def points(share: float) -> str:
    """Return a difference of shares as points, its sign always there."""
    return f"{_signed(share)} points"


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.2f}"


def _interval(each: Comparison) -> str:
    if each.low is None or each.high is None:
        return ""
    return f", {100 * each.level:g} % interval {_signed(each.low)} to {_signed(each.high)}"


def _card(protocol: StudyProtocol, each: Comparison) -> Html:
    arms = {arm.name: arm for arm in protocol.arms}
    means = [
        f"{name} {_percent(arms[name].mean)}\u00a0%"
        for name in (each.against, each.arm)
        if name in arms
    ]
    metric = next(
        (m.name for metrics in METRICS.values() for m in metrics if m.key == protocol.metric),
        protocol.metric,
    )
    told = f"{metric}: {', '.join(means)}; {len(protocol.seeds)} seeds{_interval(each)}. {each.verdict}"
    return element(
        "div",
        element("span", protocol.title),
        element("b", points(each.difference)),
        element("span", told, class_="soft"),
        class_="card",
    )


def _protocol(protocol: StudyProtocol, files: Files) -> Html:
    paper = next((each for each in PAPER.values() if each.protocol == protocol.name), None)
    stem = free_name(files, protocol.name)
    chart = draw_study(protocol, stem)
    if chart is not None:
        files[f"{stem}.png"] = chart.png
    compared = [
        element("p", comparison_text(each), class_="verdict") for each in protocol.comparisons
    ]
    block = [
        element("h4", protocol.title),
        element("p", f"{protocol.metric_title}. {_counts(protocol)}.", class_="soft"),
        _arm_table(protocol, paper),
        *compared,
        element("div", chart_figure(chart, told=_told(protocol)), class_="charts")
        if chart
        else None,
        _further_table(protocol) if protocol.further else None,
        element("p", f"Protocol: {protocol.source}", class_="soft") if protocol.source else None,
        _behind(protocol, stem, files),
    ]
    return element("article", *block)


def _counts(protocol: StudyProtocol) -> str:
    counts = (
        (protocol.train, "pictures to train"),
        (protocol.test, "to score"),
        (protocol.classes, "classes"),
    )
    told = ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)
    title = f"{protocol.data_title}. " if protocol.data_title else ""
    return f"{title}Ours: {told or 'not told'}; seeds {', '.join(protocol.seeds) or 'not told'}"


def _arm_table(protocol: StudyProtocol, paper: Published | None) -> Html:
    rows = [_arm_row(arm) for arm in protocol.arms]
    parts = [table(("Arm", "Mean, %", "SD", "By seed"), rows, class_="arms")]
    if paper is not None:
        theirs = [
            [
                "scratch",
                f"{paper.scratch:.2f}",
                f"{paper.images:,}",
                str(paper.classes),
                str(paper.size),
            ],
            [
                "pretrained",
                f"{paper.pretrained:.2f}",
                f"{paper.images:,}",
                str(paper.classes),
                str(paper.size),
            ],
        ]
        said = "The paper's own, on its split and with its pretraining (one run each; spread not told):"
        parts.append(
            table(("Arm", "%", "Pictures scored", "Classes", "Size"), theirs, said, class_="arms")
        )
    return join(parts)


def _further_table(protocol: StudyProtocol) -> Html:
    """The protocol's other scores, a row each; behind a mean its distance from the arm it is held against."""
    said = "Other scores of the same runs, %: mean and SD over seeds; in brackets the difference in points, its interval"
    return table(("Score", *(arm.name for arm in protocol.arms)), _further_rows(protocol), said)


def _further_rows(protocol: StudyProtocol) -> list[list[str]]:
    rows = []
    for score in protocol.further:
        arms = {arm.name: arm for arm in score.arms}
        compared = {each.arm: each for each in score.comparisons}
        cells = [
            _mean_and_difference(arms.get(arm.name), compared.get(arm.name))
            for arm in protocol.arms
        ]
        rows.append([score.title, *cells])
    return rows


def _mean_and_difference(arm: ArmValues | None, compared: Comparison | None) -> str:
    if arm is None:
        return NO_VALUE
    spread = f" ± {_percent(arm.deviation)}" if arm.deviation is not None else ""
    if compared is None:
        return f"{_percent(arm.mean)}{spread}"
    told = _signed(compared.difference)
    if compared.low is not None and compared.high is not None:
        told += f"; {_signed(compared.low)} to {_signed(compared.high)}"
    return f"{_percent(arm.mean)}{spread} ({told})"


def _arm_row(arm: StudyArm) -> list[str]:
    values = ", ".join(_percent(value) for value in arm.values)
    return [arm.name, _percent(arm.mean), _percent(arm.deviation), values or NO_VALUE]


def _percent(share: float | None) -> str:
    return NO_VALUE if share is None else f"{100 * share:.2f}"


def _behind(protocol: StudyProtocol, stem: str, files: Files) -> Html | None:
    """Folded: the settings, curves, classes, confusions and overlays of a protocol's runs."""
    settings = [
        element("li", f"{arm.name}: {arm.settings}") for arm in protocol.arms if arm.settings
    ]
    runs: dict[str, Sequence[RunFolder]] = {arm.name: arm.runs for arm in protocol.arms if arm.runs}
    kinds = {run.kind for each in runs.values() for run in each}
    scored: dict[str, list[SavedEvaluation]] = {
        name: [each for run in found for each in run.evaluations if each.path.name == "evaluation"]
        for name, found in runs.items()
    }
    probes = {arm.name: arm.probes for arm in protocol.arms if arm.probes}
    parts = [
        element("ul", *settings, class_="soft") if settings else None,
        arm_curves(runs, next(iter(kinds)), files, stem) if len(kinds) == 1 else None,
        classes_blocks(stem, {name: found for name, found in scored.items() if found}, files),
        probe_tables(probes) if probes else None,
    ]
    if not any(parts):
        return None
    return element("details", element("summary", "Schedules, curves, classes, overlays"), *parts)


def _told(protocol: StudyProtocol) -> str:
    means = ", ".join(f"{arm.name} {_percent(arm.mean)} %" for arm in protocol.arms)
    return f"{protocol.title}: {means}; {'; '.join(comparison_text(each) for each in protocol.comparisons)}"


def _probes(probes: Sequence[Probe]) -> Html:
    """Probes given by themselves: those of one model are one arm."""
    models = list(dict.fromkeys(each.model for each in probes))
    names = dict(zip(models, short_names([Path(model) for model in models]), strict=True))
    arms: dict[str, list[Probe]] = {}
    for each in probes:
        arms.setdefault(names[each.model], []).append(each)
    return probe_tables(arms)


def _plain(text: str) -> str:
    """Text that cannot end a Markdown table's cell, row or page."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
