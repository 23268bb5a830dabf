"""Sections of the report on where things come from: recipes, versions, data digests, checkpoints, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from colorgan.files import mapping, short
from colorgan.report.drawing.html import Html, element, join, missing, table
from colorgan.report.published import KIND_NAMES
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder, differences

MAX_ROWS = 40  # of a run's checkpoints and of its events
MAX_RECIPE = 20_000  # characters
MAX_VERSIONS = 12
NOT_KNOWN = "not known"


def recipes_section(report_data: ReportData) -> Html:
    """Return what differs between the runs of a kind, and each whole recipe; of a study's arms the first run's."""
    parts: list[Html] = []
    for kind, name in KIND_NAMES.items():
        runs = report_data.of(kind)
        if len(runs) < 2:
            continue
        rows = [[key, *values] for key, values in differences(runs).items()]
        parts.append(element("h3", f"What differs between the {name} runs"))
        parts.append(
            table(("Setting", *(run.title for run in runs)), rows)
            if rows
            else element("p", "Nothing.")
        )
    whole = [_recipe(run.title, run) for run in report_data.runs]
    for protocol in (each for study in report_data.studies for each in study.protocols):
        whole += [
            _recipe(f"{protocol.title}: {arm.name}", arm.runs[0])
            for arm in protocol.arms
            if arm.runs
        ]
    return join([*parts, element("h3", "Whole recipes") if whole else None, *whole])


def _recipe(title: str, run: RunFolder) -> Html:
    text = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100)
    return element("details", element("summary", title), element("pre", short(text, MAX_RECIPE)))


def provenance_section(report_data: ReportData) -> Html:
    """Return digests, versions, checkpoints and events of every run."""
    versions = _versions(report_data)
    if versions is None:
        return Html()
    parts = [element("h3", "Versions that trained"), versions]
    if report_data.runs:
        header = ("Run", "Training data (sha256)", "Source commit", "Ranks", "Folder")
        parts.insert(0, table(header, [_origin(run) for run in report_data.runs]))
        parts.append(
            _folded(
                "Checkpoints",
                ("Run", "Checkpoint", "Bytes", "State"),
                _checkpoints(report_data.runs),
            )
        )
        parts.append(
            _folded("Events", ("Run", "Images", "What", "Exit status"), _events(report_data.runs))
        )
    return join(parts)


def _origin(run: RunFolder) -> list[str]:
    digest, source = (
        short(value, 16).rstrip("…") for value in (run.state.get("data_digest"), _commit(run))
    )
    ranks = short(run.state.get("world_size", "–"), 20)
    return [run.title, digest or NOT_KNOWN, source or NOT_KNOWN, ranks, str(run.path)]


def _commit(run: RunFolder) -> Any:
    """The checkpoint's; of a run without one, its last start's."""
    return run.model.get("source_version") or _told_versions(run).get("source")


def _told_versions(run: RunFolder) -> dict[str, Any]:
    return mapping(run.starts[-1].get("versions")) if run.starts else {}


def _versions(report_data: ReportData) -> Html | None:
    """A row for each set of versions, and the runs that were last started with it; None without runs."""
    arms = [
        arm
        for study in report_data.studies
        for protocol in study.protocols
        for arm in protocol.arms
    ]
    known: dict[tuple[tuple[str, str], ...], list[str]] = {}
    named = [(run.title, run) for run in report_data.runs]
    named += [("a study", run) for arm in arms for run in arm.runs]
    for title, run in named:
        told = list(_told_versions(run).items())[:MAX_VERSIONS]
        known.setdefault(
            tuple((short(name, 40), short(value, 40)) for name, value in told), []
        ).append(title)
    if not known:
        return None
    if not any(known):
        return missing("The logs do not hold them: these runs are of an older version of colorgan.")
    names = list(dict.fromkeys(name for each in known for name, _ in each))
    rows = [
        [_who(titles), *(dict(each).get(name, NOT_KNOWN) for name in names)]
        for each, titles in known.items()
    ]
    return table(("Runs", *names), rows)


def _who(titles: Sequence[str]) -> str:
    counts = {title: titles.count(title) for title in dict.fromkeys(titles)}
    return ", ".join(
        title if count == 1 else f"{count} runs of {title}" for title, count in counts.items()
    )


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    if not rows:
        return missing(f"{title}: none.")
    return element("details", element("summary", f"{title} ({len(rows)})"), table(header, rows))


def _checkpoints(runs: Sequence[RunFolder]) -> list[list[str]]:
    return [
        [
            run.title,
            each.name,
            f"{each.num_bytes / 2**20:,.1f} MiB",
            "complete" if each.complete else "INCOMPLETE",
        ]
        for run in runs
        for each in run.checkpoints[-MAX_ROWS:]
    ]


def _events(runs: Sequence[RunFolder]) -> list[list[str]]:
    return [
        [
            run.title,
            f"{entry['images']:,}",
            short(entry.get("text"), 400),
            short(entry.get("status", "–"), 40),
        ]
        for run in runs
        for entry in [entry for entry in run.log if entry["kind"] == "event"][-MAX_ROWS:]
    ]
