"""The report's section by class: of runs and evaluations that were given, grouped by what they were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colorgan.report.drawing.figures import Files, free_name
from colorgan.report.drawing.html import Html, element, join
from colorgan.report.evaluations import Evaluation
from colorgan.report.final_scores import MODEL_KINDS, Result, by_protocol, data_name, spread
from colorgan.report.published import METRICS, TITLES
from colorgan.report.sections.classes import classes_blocks
from colorgan.report.story import Story


def classes_section(story: Story, results: Sequence[Result], files: Files) -> Html:
    """Return class scores, confusions and overlays of each protocol, an arm of runs beside the others."""
    parts: list[Html] = []
    for task in METRICS:
        for protocol, arms in by_protocol(results, task).items():
            found = {arm.label: [each.evaluation for each in arm.results if each.evaluation] for arm in arms}
            where = f"{data_name(protocol.data)}, {protocol.inference} inference"
            parts += _block(f"{TITLES[task]}, {where}", {name: each for name, each in found.items() if each}, files)
    counted = {id(each.evaluation) for each in results if each.evaluation}
    groups: dict[tuple[str, str], dict[str, list[Evaluation]]] = {}
    for each in story.evaluations:
        task = MODEL_KINDS.get(each.kind, "")
        if id(each) not in counted and task in METRICS:
            where = f"{data_name(each.data)}, {each.inference} inference"
            groups.setdefault((task, where), {}).setdefault(_model_name(each), []).append(each)
    for (task, where), models in groups.items():
        content = _block(f"{TITLES[task]}, {where}", models, files)
        parts += [*content[:1], *(_told(task, name, each) for name, each in models.items()), *content[1:]]
    return join(parts)


def _told(task: str, name: str, evaluations: Sequence[Evaluation]) -> Html:
    """A line of the scores of a model that no given run has."""
    found = {metric: [e.scores[metric.key] for e in evaluations if metric.key in e.scores] for metric in METRICS[task]}
    values = [f"{metric.name} {spread(known, metric.scale)}\u00a0%" for metric, known in found.items() if known]
    images = evaluations[0].scores.get("images", 0)
    return element("p", f"{name}: {', '.join(values) or 'no scores'}; {images:,.0f} pictures.")


def _block(title: str, arms: dict[str, list[Evaluation]], files: Files) -> list[Html]:
    """A title and what there is to show; nothing without arms."""
    return [element("h3", title), classes_blocks(free_name(files, f"classes {title}"), arms, files)] if arms else []


def _model_name(each: Evaluation) -> str:
    """The run's folder, as models lie in RUN/model; evaluations of one model under one protocol are one arm."""
    return Path(each.model).parent.name or each.model
