"""The report: run folders -> one self-contained page (report.html), its tables as text (report.md), and its PNGs.

    read_folders (story) -> sections -> files

The page needs no network and no script; every text that comes from a file is escaped (colorgan/report/drawing/html.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from colorgan.files import replacing
from colorgan.report.drawing.figures import Files
from colorgan.report.drawing.html import Html, element, join, table
from colorgan.report.drawing.style import STYLE
from colorgan.report.final_scores import Result, data_name, final_results
from colorgan.report.published import KIND_NAMES
from colorgan.report.report_data import ReportData, read_folders
from colorgan.report.sections.classes import classes_section
from colorgan.report.sections.finetuning import finetuning_section, start_of
from colorgan.report.sections.gallery import colored_section, progress_section
from colorgan.report.sections.pretraining import pretraining_section, speed_section
from colorgan.report.sections.provenance import provenance_section, recipes_section
from colorgan.report.sections.scores import markdown, scores_section
from colorgan.report.sections.transfer import transfer_cards, transfer_markdown, transfer_section
from colorgan.runs.reading import RunFolder

PAGE, TEXT = "report.html", "report.md"


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of run, study, evaluation and probe folders into `out`, the page last; return the page.

    Raises:
        UsageError: a folder is none of them.
        OSError: `out` cannot be written.
    """
    report_data = read_folders(folders)
    files: Files = {}
    page = report_page(report_data, files)
    results, _ = final_results(report_data)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(out / name, data)
    text = markdown(results) + transfer_markdown(report_data)
    _write(out / TEXT, text.encode("utf-8", "backslashreplace"))
    _write(out / PAGE, page.encode("utf-8", "backslashreplace"))
    return out / PAGE


def report_page(report_data: ReportData, files: Files) -> str:
    """Return the page; the PNGs that belong beside it are put into `files` by name.

    A section of which nothing was given is left out, and named at the end.
    """
    results, notes = final_results(report_data)
    pretrained, tuned = (
        report_data.of("pretrain"),
        [run for run in report_data.runs if run.kind != "pretrain"],
    )
    made: list[tuple[str, str, Html]] = [
        ("progress", "Learning progress", progress_section(report_data, files)),
        ("coloured", "Coloured pictures", colored_section(report_data, files)),
        ("transfer", "Transfer", transfer_section(report_data, files)),
        ("scores", "Scores beside the paper's", _scores(report_data, results)),
        ("classes", "By class", classes_section(report_data, results, files)),
        (
            "pretraining",
            "Pretraining",
            pretraining_section(report_data, files) if pretrained else Html(),
        ),
        (
            "finetuning",
            "Scratch against pretrained",
            finetuning_section(report_data, files) if tuned else Html(),
        ),
        ("speed", "Throughput", speed_section(report_data, files) if report_data.runs else Html()),
        ("recipes", "Recipes", recipes_section(report_data)),
        ("provenance", "Data, versions, checkpoints", provenance_section(report_data)),
    ]
    absent = ", ".join(title.lower() for _, title, content in made if not content)
    notes = [*notes, *([f"Nothing given that shows: {absent}."] if absent else [])]
    sections = [each for each in made if each[2]]
    sections.append(("missing", "What is missing", _missing(report_data, notes)))
    return _document(report_data, sections)


def _scores(report_data: ReportData, results: Sequence[Result]) -> Html:
    return (
        scores_section(results, elsewhere=bool(report_data.studies)) if report_data.runs else Html()
    )


def _document(report_data: ReportData, sections: Sequence[tuple[str, str, Html]]) -> str:
    links = [element("a", title, href=f"#{key}") for key, title, _ in sections]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    body = [
        element("h1", "colorgan report"),
        element("p", f"Made {when} from {_counted(report_data)}.", class_="soft"),
        element("nav", *links, aria_label="Sections"),
        _overview(report_data),
        *(
            element("section", element("h2", title), content, id=key)
            for key, title, content in sections
        ),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "colorgan report"),
        element("style", Html(STYLE)),
    ]
    document = element(
        "html", element("head", *head), element("body", element("main", *body)), lang="en"
    )
    return f"<!DOCTYPE html>\n{document}\n"


def _counted(report_data: ReportData) -> str:
    counts = (
        (len(report_data.runs), "run"),
        (len(report_data.studies), "study"),
        (len(report_data.evaluations), "evaluation"),
        (len(report_data.probes), "probe"),
    )
    plurals = {"study": "studies"}
    told = [f"{n} {name if n == 1 else plurals.get(name, f'{name}s')}" for n, name in counts if n]
    return ", ".join(told)


def _overview(report_data: ReportData) -> Html:
    """Cards with the last colour scores and the studies' differences, and the table of runs."""
    cards = [
        card for run in report_data.of("pretrain") if (card := _card(run)) is not None
    ] + transfer_cards(report_data)
    rows = [
        [
            run.title,
            KIND_NAMES[run.kind],
            start_of(run),
            str(run.seed),
            _length(run),
            data_name(run.folders("data.train")),
        ]
        for run in report_data.runs
    ]
    header = ("Run", "What", "Starts from", "Seed", "Images seen", "Trained on")
    return join(
        [
            element("div", *cards, class_="cards") if cards else None,
            table(header, rows) if rows else None,
        ]
    )


def _card(run: RunFolder) -> Html | None:
    scores = run.last_scores
    if "psnr" not in scores:
        return None
    grey = scores.get("grey_psnr")
    beside = ""
    if grey is not None:
        gap = scores["psnr"] - grey
        beside = (
            f"{abs(gap):.2f} dB {'above' if gap > 0 else 'below'} the same pictures left grey. "
        )
    what = f"{beside}{scores.get('images', 0):,.0f} held-out pictures, after {run.last_scores_images:,} images."
    return element(
        "div",
        element("span", run.title),
        element("b", f"{scores['psnr']:.2f} dB PSNR"),
        element("span", what, class_="soft"),
        class_="card",
    )


def _length(run: RunFolder) -> str:
    total = f" of {run.total_images:,}" if run.total_images else ""
    return f"{run.images_seen:,}" if run.finished else f"{run.images_seen:,}{total}, not at its end"


def _missing(report_data: ReportData, notes: Sequence[str]) -> Html:
    told = [
        *report_data.notes,
        *notes,
        *(f"{run.title}: {note}" for run in report_data.runs for note in run.notes),
    ]
    return (
        element("ul", *(element("li", note) for note in told)) if told else element("p", "Nothing.")
    )


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(data)
