"""The section on transfer: a study's protocols, each with its own table, chart and verdict.

The paper's protocols and the field's are apart, and no two protocols share a column.
"""

from __future__ import annotations

from collections.abc import Mapping

from colorgan.evaluation.record import SavedEvaluation
from colorgan.report.blocks import Block, Charts, Folded, Group, Heading, Items, Table, Text
from colorgan.report.charts import Files, free_name
from colorgan.report.published import PAPER, Published
from colorgan.report.report_data import ReportData
from colorgan.report.sections.classes import classes_blocks
from colorgan.report.sections.finetuning import arm_curves
from colorgan.report.sections.probes import by_model, probe_tables
from colorgan.report.sections.scores import markdown_rows, markdown_text
from colorgan.report.study_chart import draw_study
from colorgan.study.record import (
    ArmFolders,
    ArmRecord,
    ArmValues,
    ComparisonRecord,
    ProtocolRecord,
    Study,
)

NO_VALUE = "–"


def transfer_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return every study's protocols, the paper's first, then probes without a study."""
    blocks: list[Block] = []
    for study in report_data.studies:
        several = len(report_data.studies) > 1 and not study.of_single_runs
        suffix = f": {study.path.name}" if several else ""
        # Loose runs follow no protocol that the project knows.
        others = "Runs by their own recipes" if study.of_single_runs else "The field's protocols"
        for title, of_the_paper in (("The paper's protocols", True), (others, False)):
            protocols = [each for each in study.protocols if each.of_the_paper is of_the_paper]
            if protocols:
                blocks.append(Heading(title + suffix))
            for protocol in protocols:
                blocks.append(
                    _protocol(
                        protocol,
                        study.behind(protocol),
                        files,
                    )
                )
        blocks += _cost(study)

    if report_data.probes:
        blocks += [Heading("Frozen features"), *probe_tables(by_model(report_data.probes))]
    return blocks


def _cost(study: Study) -> list[Block]:
    if not study.core_minutes:
        return []
    rows = [[name, f"{minutes:.1f}"] for name, minutes in study.core_minutes.items()]
    total = sum(study.core_minutes.values())
    spent = f"{total:.1f} core-minutes" if total < 60 else f"{total / 60:.1f} core-hours"
    return [Folded(f"Cost: {spent}", [Table(("Step", "Core-minutes"), rows)])]


def transfer_markdown(report_data: ReportData) -> str:
    """Return the studies' tables as Markdown."""
    lines: list[str] = []
    for study in report_data.studies:
        for protocol in study.protocols:
            lines += _markdown(protocol)
    return "\n".join(lines) + "\n" if lines else ""


def _markdown(protocol: ProtocolRecord) -> list[str]:
    title = f"{protocol.title}: {protocol.metric_title}"
    rows = [
        [
            "arm",
            "mean (%)",
            "standard deviation",
            "by seed",
        ],
        ["---"] * 4,
    ]
    rows += [_arm_row(arm) for arm in protocol.arms]
    lines = [
        "",
        f"## {markdown_text(title)}",
        "",
        markdown_text(_counts(protocol)),
        "",
    ]
    lines += [*markdown_rows(rows), ""]
    lines += [f"- {markdown_text(comparison_text(each))}" for each in protocol.comparisons]
    if protocol.further:
        names = ["score", *(arm.name for arm in protocol.arms)]
        rows = [names, ["---"] * len(names), *_further_rows(protocol)]
        lines += ["", *markdown_rows(rows)]
    return lines


def comparison_text(each: ComparisonRecord) -> str:
    """Return a difference with its interval and its verdict."""
    arms = f"{each.arm} − {each.against}"
    # Most verdicts tell the numbers themselves.
    if "points" in each.verdict:
        return f"{arms}: {each.verdict}"

    verdict = f": {each.verdict}" if each.verdict else ""
    return f"{arms}: {points(each.difference)}{interval_text(each)}{verdict}"


def short_comparison(each: ComparisonRecord) -> str:
    """Return a difference in points, with its interval in brackets."""
    interval = ""
    if each.low is not None and each.high is not None:
        interval = f" ({100 * each.low:.1f} to {100 * each.high:.1f})"
    numbers = f"{100 * (each.difference or 0.0):+.1f}{interval}".replace("-", "−")
    return f"{each.arm} − {each.against} {numbers}"


def points(share: float | None) -> str:
    """Return a difference of shares as points, always with its sign."""
    return f"{_signed(share)} points"


def _signed(share: float | None) -> str:
    share = share or 0.0
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.2f}"


def interval_text(each: ComparisonRecord) -> str:
    """Return the interval of a difference, after a comma; "" without one."""
    if each.low is None or each.high is None:
        return ""
    return f", {100 * each.level:g} % interval {_signed(each.low)} to {_signed(each.high)}"


def _protocol(protocol: ProtocolRecord, behind: Mapping[str, ArmFolders], files: Files) -> Block:
    paper = next((each for each in PAPER.values() if each.protocol == protocol.name), None)
    # Two studies may follow one protocol.
    stem = free_name(files, protocol.name)
    means = ", ".join(f"{arm.name} {percent_text(arm.mean)} %" for arm in protocol.arms)
    verdicts = [comparison_text(each) for each in protocol.comparisons]
    figure = draw_study(
        protocol,
        stem,
        f"{protocol.title}: {means}; {'; '.join(verdicts)}",
        files,
    )

    blocks: list[Block] = [Heading(protocol.title, 4)]
    blocks.append(Text(f"{protocol.metric_title}. {_counts(protocol)}.", "soft"))
    if verdicts:
        blocks.append(Items(verdicts, "verdict"))
    # Written before the runs and shown as it was, above all where it failed.
    if protocol.prediction:
        blocks.append(Text(f"Predicted before the runs: {protocol.prediction}", "soft"))
    rows = [_arm_row(arm) for arm in protocol.arms]
    blocks.append(
        Table(
            ("Arm", "Mean, %", "SD", "By run"),
            rows,
            kind="arms",
        )
    )
    if paper is not None:
        blocks.append(_paper_table(protocol, paper))
    if figure is not None:
        blocks.append(Charts([figure]))
    if protocol.further:
        blocks.append(_further_table(protocol))
    rules = [each for each in (protocol.source, protocol.input, protocol.head) if each]
    if rules:
        blocks.append(Text(f"Protocol: {'; '.join(rules)}", "soft"))
    blocks += _behind(protocol, behind, stem, files)
    return Group("article", blocks)


def _counts(protocol: ProtocolRecord) -> str:
    data = protocol.data
    counts = []
    for count, what in (
        (data.train, "images to train"),
        (data.test, "to score"),
        (data.classes, "classes"),
    ):
        if count is not None:
            counts.append(f"{count:,} {what}")
    title = f"{data.title}. " if data.title else ""
    seeds = ", ".join(protocol.seeds) or "unknown"
    pretraining = protocol.pretraining_seeds
    # Seeds of fine-tuning alone do not show how much pretraining varies.
    if len(pretraining) > 1:
        seeds += f"; pretraining seeds {', '.join(pretraining)}"
    return f"{title}Ours: {', '.join(counts) or 'sizes unknown'}; seeds {seeds}"


def _paper_table(protocol: ProtocolRecord, paper: Published) -> Block:
    counts = [f"{paper.images:,}", str(paper.classes), str(paper.size)]
    rows = []
    for name, score in (("scratch", paper.scratch), ("pretrained", paper.pretrained)):
        rows.append([name, f"{score:.2f}", *counts])

    # What differs is said above the paper's numbers, never left to the reader.
    ways = ["its pretraining and split"]
    if protocol.data.test != paper.images:
        ways.append("images scored")
    if protocol.data.classes != paper.classes:
        ways.append("classes")
    caption = (
        "The paper's own (one run each; its spread is not reported). It differs from ours in "
        f"{', '.join(ways)}:"
    )
    header = ("Arm", "%", "Images scored", "Classes", "Size")
    return Table(header, rows, caption, "arms", sortable=False)


def _further_table(protocol: ProtocolRecord) -> Block:
    """Return the protocol's other scores, a row each, with differences in brackets."""
    caption = (
        "Other scores of the same runs, %: mean ± SD over runs; in brackets the difference from "
        f"{_baseline(protocol)} in points and its interval, by itself"
    )
    header = ("Score", *(arm.name for arm in protocol.arms))
    return Table(
        header,
        _further_rows(protocol),
        caption,
        sortable=False,
    )


def _baseline(protocol: ProtocolRecord) -> str:
    """Return the arm that the others stand against, the first; a damaged record may have none."""
    return next((arm.name for arm in protocol.arms), "")


def _further_rows(protocol: ProtocolRecord) -> list[list[str]]:
    rows = []
    for score in protocol.further:
        arms = {arm.name: arm for arm in score.arms}
        # Further pairs of arms are in the comparisons; here each stands against the first arm.
        baseline = _baseline(protocol)
        compared = {each.arm: each for each in score.comparisons if each.against == baseline}
        cells = []
        for arm in protocol.arms:
            cells.append(_mean_and_difference(arms.get(arm.name), compared.get(arm.name)))
        rows.append([score.metric_title or score.metric, *cells])
    return rows


def _mean_and_difference(arm: ArmValues | None, compared: ComparisonRecord | None) -> str:
    if arm is None:
        return NO_VALUE

    text = percent_text(arm.mean)
    if arm.deviation is not None:
        text += f" ± {percent_text(arm.deviation)}"
    if compared is None:
        return text

    gap = _signed(compared.difference)
    if compared.low is not None and compared.high is not None:
        gap += f"; {_signed(compared.low)} to {_signed(compared.high)}"
    return f"{text} ({gap})"


def _arm_row(arm: ArmRecord) -> list[str]:
    values = ", ".join(percent_text(value) for value in arm.values)
    return [
        arm.name,
        percent_text(arm.mean),
        percent_text(arm.deviation),
        values or NO_VALUE,
    ]


def percent_text(share: float | None) -> str:
    """Return a share in percent with two decimals."""
    return NO_VALUE if share is None else f"{100 * share:.2f}"


def _behind(
    protocol: ProtocolRecord, behind: Mapping[str, ArmFolders], stem: str, files: Files
) -> list[Block]:
    """Return, folded, the settings, curves, classes, confusions and overlays of the runs."""
    settings = []
    for arm in protocol.arms:
        if arm.settings_text:
            settings.append(f"{arm.name}: {arm.settings_text}")

    runs = {name: each.runs for name, each in behind.items() if each.runs}
    probes = {name: each.probes for name, each in behind.items() if each.probes}
    scored: dict[str, list[SavedEvaluation]] = {}
    for name, found in runs.items():
        for run in found:
            # Evaluations on other sets would be mixed into the classes.
            own = [each for each in run.evaluations if each.path.name == "evaluation"]
            scored.setdefault(name, []).extend(own)

    blocks: list[Block] = [Items(settings, "soft")] if settings else []
    kinds = {run.kind for found in runs.values() for run in found}
    # Curves of two tasks have no common scores.
    if len(kinds) == 1:
        blocks += arm_curves(runs, next(iter(kinds)), files, stem)
    blocks += classes_blocks(
        stem,
        {name: each for name, each in scored.items() if each},
        files,
    )
    blocks += probe_tables(probes)
    return [Folded("Schedules, curves, classes, overlays", blocks)] if blocks else []
