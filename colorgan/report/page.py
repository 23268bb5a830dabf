"""The report: run folders -> one self-contained page (report.html), report.md and PNGs.

    read_folders -> sections (blocks) -> templates -> files

The page needs no network; every text from a file is escaped, and its content security policy lets
only its own script run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from colorgan.files import check_output, replacing_folder
from colorgan.report.blocks import Block, Cards, Items, Section, Table, Text
from colorgan.report.charts import Files
from colorgan.report.final_scores import Result, data_name, final_results
from colorgan.report.published import KIND_NAMES
from colorgan.report.rendering import render_page
from colorgan.report.report_data import ReportData, read_folders
from colorgan.report.sections.answer import answer_cards, verdicts
from colorgan.report.sections.classes import classes_section
from colorgan.report.sections.finetuning import finetuning_section, start_of
from colorgan.report.sections.gallery import colored_section, progress_section
from colorgan.report.sections.pretraining import pretraining_section, speed_section
from colorgan.report.sections.provenance import provenance_section, recipes_section
from colorgan.report.sections.scores import markdown, scores_section
from colorgan.report.sections.transfer import transfer_markdown, transfer_section
from colorgan.runs.reading import RunFolder

PAGE, TEXT = "report.html", "report.md"


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of run, study, evaluation and probe folders into `out`; return the page.

    Raises:
        UsageError: a folder is none of them, or `out` holds something else than an older report.
        OSError: `out` cannot be written.
    """
    # By the text: a page that somebody has removed is to be made again.
    check_output(out, TEXT)
    report_data = read_folders(folders)
    files: Files = {}
    page = report_page(report_data, files)
    results, _ = final_results(report_data)
    text = markdown(results) + transfer_markdown(report_data)

    # The page comes last: where it exists, everything beside it does.
    files[TEXT] = text.encode("utf-8", "backslashreplace")
    files[PAGE] = page.encode("utf-8", "backslashreplace")
    # At once, as pictures of an older report would be taken for this one's.
    with replacing_folder(out) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return out / PAGE


def report_page(report_data: ReportData, files: Files) -> str:
    """Return the page; the PNGs beside it are put into `files` by name.

    Sections without content are left out and named at the end.
    """
    results, notes = final_results(report_data)
    sections = _sections(report_data, results, files)

    # A missing section is a fact about the given folders, so it is named.
    absent = ", ".join(section.title.lower() for section in sections if not section.blocks)
    if absent:
        notes = [*notes, f"The given folders have nothing for: {absent}."]
    shown = [section for section in sections if section.blocks]
    shown.append(
        Section(
            "missing",
            "What is missing",
            _missing(report_data, notes),
        )
    )

    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    made = f"Made {when} from {_counted(report_data)}."
    return render_page(
        "colorgan report",
        made,
        _answer(report_data, results),
        shown,
    )


def _sections(report_data: ReportData, results: Sequence[Result], files: Files) -> list[Section]:
    """Return every section in the page's order, also those without content."""
    # Transfer first: it is what the pretraining is for. Provenance last.
    return [
        Section(
            "transfer",
            "Transfer",
            transfer_section(report_data, files),
        ),
        Section(
            "colored",
            "Colored photos",
            colored_section(report_data, files),
        ),
        Section(
            "progress",
            "Learning progress",
            progress_section(report_data, files),
        ),
        Section(
            "scores",
            "Scores beside the paper's",
            _scores(report_data, results),
        ),
        Section(
            "classes",
            "By class",
            classes_section(report_data, results, files),
        ),
        Section("runs", "Runs", _runs(report_data)),
        Section(
            "pretraining",
            "Pretraining",
            pretraining_section(report_data, files),
        ),
        Section(
            "finetuning",
            "Fine-tuning",
            finetuning_section(report_data, files),
        ),
        Section(
            "speed",
            "Throughput",
            speed_section(report_data, files),
        ),
        Section("recipes", "Recipes", recipes_section(report_data)),
        Section(
            "provenance",
            "Data, versions, checkpoints",
            provenance_section(report_data),
        ),
    ]


def _answer(report_data: ReportData, results: Sequence[Result]) -> list[Block]:
    """Return what a reader wants to know first: the verdicts and a card per task and probe."""
    blocks: list[Block] = []
    # Sentences before cards: a verdict has its interval, a card is a glance.
    sentences = verdicts(report_data)
    if sentences:
        blocks.append(Items(sentences, "verdict"))
    cards = answer_cards(report_data, results)
    if cards:
        blocks.append(Cards(cards))
    return blocks


def _scores(report_data: ReportData, results: Sequence[Result]) -> list[Block]:
    if not report_data.runs:
        return []
    return scores_section(results, elsewhere=bool(report_data.studies))


def _counted(report_data: ReportData) -> str:
    counts = []
    for count, name, plural in (
        (len(report_data.runs), "run", "runs"),
        (len(report_data.studies), "study", "studies"),
        (len(report_data.evaluations), "evaluation", "evaluations"),
        (len(report_data.probes), "probe", "probes"),
    ):
        if count:
            counts.append(f"{count} {name if count == 1 else plural}")
    return ", ".join(counts)


def _runs(report_data: ReportData) -> list[Block]:
    rows = []
    for run in report_data.runs:
        kind, data = KIND_NAMES[run.kind], data_name(run.folders("data.train"))
        rows.append(
            [
                run.title,
                kind,
                start_of(run),
                str(run.seed),
                _length(run),
                data,
            ]
        )
    header = (
        "Run",
        "Kind",
        "Starts from",
        "Seed",
        "Images seen",
        "Trained on",
    )
    return [Table(header, rows)] if rows else []


def _length(run: RunFolder) -> str:
    total = f" of {run.total_images:,}" if run.total_images else ""
    return f"{run.images_seen:,}" if run.finished else f"{run.images_seen:,}{total}, unfinished"


def _missing(report_data: ReportData, notes: Sequence[str]) -> list[Block]:
    texts = [*report_data.notes, *notes]
    for run in report_data.runs:
        texts += [f"{run.title}: {note}" for note in run.notes]
    return [Items(texts)] if texts else [Text("Nothing.")]
