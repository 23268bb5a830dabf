"""The answer at the top of the page: verdicts, and a card per task, probe and generator."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from colorgan.evaluation.record import WITHOUT_NEAR_GREY
from colorgan.probes.record import Probe
from colorgan.report.blocks import Card
from colorgan.report.final_scores import Result, by_conditions, data_name, spread
from colorgan.report.published import METRICS, TITLES
from colorgan.report.report_data import ReportData
from colorgan.report.sections.probes import best_of, by_model
from colorgan.report.sections.transfer import (
    interval_text,
    percent_text,
    points,
    short_comparison,
)
from colorgan.runs.reading import RunFolder
from colorgan.study.record import ComparisonRecord, ProtocolRecord, Study


def verdicts(report_data: ReportData) -> list[str]:
    """Return a sentence per protocol: the study's verdict, or all its differences in short."""
    sentences = []
    for study in report_data.studies:
        for protocol in study.protocols:
            judged = [each for each in protocol.comparisons if each.verdict]
            if len(judged) == 1:
                sentences.append(f"{protocol.title}: {judged[0].verdict}")
            elif judged:
                sentences.append(f"{protocol.title}: {_in_short(judged)}")
    return sentences


def _in_short(comparisons: Sequence[ComparisonRecord]) -> str:
    """Return what is shown, then what is not, with intervals in points."""
    parts = []
    unjudged = [each for each in comparisons if each.verdict.startswith("no verdict")]
    judged = [each for each in comparisons if each not in unjudged]
    for title, rows in (
        ("shown", [each for each in judged if each.is_difference and each.survives is not False]),
        (
            "shown, but not after the correction for all comparisons",
            [each for each in judged if each.is_difference and each.survives is False],
        ),
        ("not shown", [each for each in judged if not each.is_difference]),
        ("no verdict", unjudged),
    ):
        if rows:
            parts.append(f"{title}: {', '.join(map(short_comparison, rows))}")
    return f"{'; '.join(parts)} (points, {100 * comparisons[0].level:g} % intervals)"


def answer_cards(report_data: ReportData, results: Sequence[Result] = ()) -> list[Card]:
    """Return a card per compared protocol, task of runs, set of probes, and generator."""
    cards = []
    for study in report_data.studies:
        for protocol in study.protocols:
            # The first comparison is that of the first pretrained arm with scratch.
            cards += [_study_card(protocol, each) for each in protocol.comparisons[:1]]
            cards += _probe_cards(protocol.title, _study_probes(study, protocol))
    if not report_data.studies:
        for task in METRICS:
            cards += _task_cards(task, results)
    cards += _probe_cards("Frozen features", by_model(report_data.probes))
    for run in report_data.of("pretrain"):
        cards += _generator_card(run)
    return cards


def _study_card(protocol: ProtocolRecord, each: ComparisonRecord) -> Card:
    arms = {arm.name: arm for arm in protocol.arms}
    means = []
    for name in (each.against, each.arm):
        if name in arms:
            means.append(f"{name} {percent_text(arms[name].mean)}\u00a0%")
    names = {metric.key: metric.name for metrics in METRICS.values() for metric in metrics}
    metric = names.get(protocol.metric, protocol.metric)

    # Color only where the interval leaves 0 out, among all comparisons: a gain by chance is not
    # green.
    kind = "unclear"
    if each.is_difference and each.survives is not False:
        kind = "better" if (each.difference or 0.0) > 0 else "worse"
    text = f"{metric}: {', '.join(means)}; {_seeds_text(protocol)}{interval_text(each)}."
    return Card(protocol.title, points(each.difference), text, kind)


def _seeds_text(protocol: ProtocolRecord) -> str:
    """Return over how many seeds the interval is: of pretraining, of what follows, or of both."""
    pretrained = len(protocol.pretraining_seeds)
    runs = len(protocol.seeds)
    if pretrained < 2:
        return f"{runs} seed{'s' * (runs != 1)}"
    # Linear classifiers have no seed of their own.
    return f"{pretrained} pretraining seeds" + (f", {runs} seeds each" if runs > 1 else "")


def _task_cards(task: str, results: Sequence[Result]) -> list[Card]:
    """Return a card per set on which runs of a task were scored, with every start's mean."""
    cards = []
    for conditions, groups in by_conditions(results, task).items():
        # The first metric that every group has: the others are in the tables.
        for metric in METRICS[task]:
            if all(group.values(metric.key) for group in groups):
                break
        else:
            continue

        texts = []
        for group in groups:
            values = list(group.values(metric.key).values())
            texts.append(f"{group.label} {spread(values, metric.scale)}\u00a0{metric.unit}")
        where = f"{data_name(conditions.data)}, {conditions.images:,} images"
        cards.append(
            Card(f"{TITLES[task]}, {where}", texts[0], f"{metric.name}: {'; '.join(texts)}.")
        )
    return cards


def _study_probes(study: Study, protocol: ProtocolRecord) -> dict[str, Sequence[Probe]]:
    behind = study.behind(protocol)
    return {name: each.probes for name, each in behind.items() if each.probes}


def _probe_cards(title: str, arms: Mapping[str, Sequence[Probe]]) -> list[Card]:
    """Return a card with each arm's score at the level that the training part chose; [] without."""
    texts, values = [], {}
    score = ""
    for name, probes in arms.items():
        found, shares = best_of(probes)
        if shares:
            score = found
            values[name] = statistics.fmean(shares)
            texts.append(f"{name} {100 * values[name]:.1f}\u00a0%")
    if not values:
        return []

    # The best arm is the headline; all arms are in the text.
    best = max(values, key=lambda name: values[name])
    headline = f"{best} {100 * values[best]:.1f}\u00a0%"
    return [Card(f"{title}: {score}", headline, f"{', '.join(texts)}.")]


def _generator_card(run: RunFolder) -> list[Card]:
    scores = run.last_scores
    if "psnr" not in scores:
        return []

    near_grey = scores.get("near_grey_images", 0)
    gap = ""
    kind = ""
    # A near-grey photo is best left grey, and would hide what was learned from the others.
    ending = WITHOUT_NEAR_GREY if "psnr" + WITHOUT_NEAR_GREY in scores else ""
    if "grey_psnr" + ending in scores:
        # Grey is the baseline that a generator of no color reaches.
        gain = scores["psnr" + ending] - scores["grey_psnr" + ending]
        kind = "better" if gain > 0 else "worse"
        word = "above" if gain > 0 else "below"
        left_out = f", without the {near_grey:,.0f} near-grey" if ending and near_grey else ""
        gap = f"{abs(gain):.2f} dB {word} the same images left grey{left_out}. "
    count = f"{scores.get('images', 0):,.0f} held-out images"
    text = f"{gap}{count}, after {run.last_scores_images:,} images."
    return [
        Card(
            run.title,
            f"{scores['psnr']:.2f} dB PSNR",
            text,
            kind,
        )
    ]
