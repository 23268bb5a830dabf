"""Sections of the report on origins: recipes, versions, data digests, checkpoints, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from colorgan.files import mapping, short
from colorgan.report.blocks import Block, Folded, Heading, Table, Text
from colorgan.report.published import KIND_NAMES
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import CHANGED, RunFolder, differences

MAX_ROWS = 40  # of a run's checkpoints and of its events
MAX_RECIPE = 20_000  # characters
MAX_VERSIONS = 12
UNKNOWN = "unknown"


def recipes_section(report_data: ReportData) -> list[Block]:
    """Return the differences between runs, and each recipe; of an arm its first run's."""
    blocks: list[Block] = []
    for kind, name in KIND_NAMES.items():
        runs = report_data.of(kind)
        # One run differs from nothing.
        if len(runs) < 2:
            continue
        rows = [[key, *values] for key, values in differences(runs).items()]
        header = ("Setting", *(run.title for run in runs))
        blocks.append(Heading(f"Differences between the {name} runs"))
        blocks.append(Table(header, rows) if rows else Text("None."))

    recipes = [_recipe(run.title, run) for run in report_data.runs]
    for study in report_data.studies:
        for protocol in study.protocols:
            for name, behind in study.behind(protocol).items():
                if behind.runs:
                    recipes.append(_recipe(f"{protocol.title}: {name}", behind.runs[0]))
    return [*blocks, Heading("Recipes"), *recipes] if recipes else blocks


def _recipe(title: str, run: RunFolder) -> Folded:
    text = yaml.safe_dump(
        run.recipe,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return Folded(title, [Text(short(text, MAX_RECIPE), "code")])


def provenance_section(report_data: ReportData) -> list[Block]:
    """Return digests, versions, checkpoints and events of every run."""
    versions = _versions(report_data)
    if versions is None:
        return []

    runs = report_data.runs
    blocks: list[Block] = []
    if runs:
        header = (
            "Run",
            "Training data (sha256)",
            "Source commit",
            "Ranks",
            "Folder",
        )
        blocks.append(Table(header, [_origin(run) for run in runs]))
    blocks += [Heading("Versions that trained"), versions]
    if runs:
        saved = _folded(
            "Checkpoints",
            ("Run", "Checkpoint", "Bytes", "State"),
            _checkpoints(runs),
        )
        blocks.append(saved)
        blocks.append(
            _folded(
                "Events",
                ("Run", "Images", "Event", "Exit status"),
                _events(runs),
            )
        )
    return blocks


def _origin(run: RunFolder) -> list[str]:
    # The commit is the checkpoint's; of a run without one, its last start's.
    commit = run.model.get("source_version") or _last_versions(run).get("source")
    mark = CHANGED if str(commit).endswith(CHANGED) else ""
    digest = run.state.get("data_digest")
    return [
        run.title,
        short(digest, 16).rstrip("…") or UNKNOWN,
        (short(commit, 16).rstrip("…") or UNKNOWN) + mark,
        short(run.state.get("world_size", "–"), 20),
        str(run.path),
    ]


def _last_versions(run: RunFolder) -> dict[str, Any]:
    return mapping(run.starts[-1].get("versions")) if run.starts else {}


def _versions(report_data: ReportData) -> Block | None:
    """Return a row per set of versions, with the runs that last started with it."""
    named = [(run.title, run) for run in report_data.runs]
    for study in report_data.studies:
        for behind in study.folders.values():
            named += [("a study", run) for run in behind.runs]

    # Runs with the same versions share a row: usually there is one.
    known: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for title, run in named:
        versions = list(_last_versions(run).items())[:MAX_VERSIONS]
        key = tuple((short(name, 40), short(value, 40)) for name, value in versions)
        known.setdefault(key, []).append(title)
    if not known:
        return None
    if not any(known):
        return Text("Not in the logs: these runs are of an older version of colorgan.", "missing")

    names = list(dict.fromkeys(name for each in known for name, _ in each))
    rows = []
    for each, titles in known.items():
        by_name = dict(each)
        rows.append([_counted(titles), *(by_name.get(name, UNKNOWN) for name in names)])
    return Table(("Runs", *names), rows)


def _counted(titles: Sequence[str]) -> str:
    texts = []
    for title in dict.fromkeys(titles):
        count = titles.count(title)
        texts.append(title if count == 1 else f"{count} runs of {title}")
    return ", ".join(texts)


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    if not rows:
        return Text(f"{title}: none.", "missing")
    return Folded(f"{title} ({len(rows)})", [Table(header, rows)])


def _checkpoints(runs: Sequence[RunFolder]) -> list[list[str]]:
    rows = []
    for run in runs:
        for each in run.checkpoints[-MAX_ROWS:]:
            size = f"{each.num_bytes / 2**20:,.1f} MiB"
            state = "complete" if each.complete else "INCOMPLETE"
            rows.append([run.title, each.name, size, state])
    return rows


def _events(runs: Sequence[RunFolder]) -> list[list[str]]:
    rows = []
    for run in runs:
        # The last ones: a run that was requeued for a week has thousands.
        events = [entry for entry in run.log if entry["kind"] == "event"]
        for entry in events[-MAX_ROWS:]:
            text = short(entry.get("text"), 400)
            status = short(entry.get("status", "–"), 40)
            rows.append(
                [
                    run.title,
                    f"{entry['images']:,}",
                    text,
                    status,
                ]
            )
    return rows
