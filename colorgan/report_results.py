"""The report's section by class: of runs and evaluations that were given, grouped by what they were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colorgan.report_classes import classes_blocks
from colorgan.report_evaluations import Evaluation
from colorgan.report_figures import Files, free_name
from colorgan.report_html import Html, element, join
from colorgan.report_published import METRICS, TITLES
from colorgan.report_scores import MODEL_KINDS, Result, by_protocol, data_name
from colorgan.report_story import Story


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
        parts += _block(f"{TITLES[task]}, {where}", models, files)
    return join(parts)


def _block(title: str, arms: dict[str, list[Evaluation]], files: Files) -> list[Html]:
    content = classes_blocks(free_name(files, f"classes {title}"), arms, files) if arms else Html()
    return [element("h3", title), content] if content else []


def _model_name(each: Evaluation) -> str:
    """The run's folder, as models lie in RUN/model; evaluations of one model under one protocol are one arm."""
    return Path(each.model).parent.name or each.model
