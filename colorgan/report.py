"""The report: run folders -> one self-contained page (report.html), its tables as text (report.md), and its PNGs.

    read_folders (report_runs) -> sections (here, report_sections, report_tables) -> files

The page needs no network and no script; every text that comes from a file is escaped (colorgan/report_html.py).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from colorgan.report_html import Html, element
from colorgan.report_runs import Story, read_folders
from colorgan.report_scores import final_results
from colorgan.report_sections import (
    Files,
    coloured_section,
    finetuning_section,
    overview_section,
    pretraining_section,
    progress_section,
    speed_section,
)
from colorgan.report_style import STYLE
from colorgan.report_tables import markdown, provenance_section, recipes_section, scores_section

PAGE, TEXT = "report.html", "report.md"
TOOLS = ("colorgan", "torch", "matplotlib", "pillow")


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of run and evaluation folders into `out`, the page last; return the page.

    Raises:
        UsageError: a folder is no run and no evaluation.
        OSError: `out` cannot be written.
    """
    story = read_folders(folders)
    files: Files = {}
    page = report_page(story, files)
    results, _ = final_results(story)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(out / name, data)
    _write(out / TEXT, markdown(results).encode("utf-8", "backslashreplace"))
    _write(out / PAGE, page.encode("utf-8", "backslashreplace"))
    return out / PAGE


def report_page(story: Story, files: Files) -> str:
    """Return the page; the PNGs that belong beside it are put into `files` by name."""
    results, notes = final_results(story)
    sections: list[tuple[str, str, Html]] = [
        ("progress", "Learning progress", progress_section(story, files)),
        ("coloured", "Coloured pictures", coloured_section(story, files)),
        ("scores", "Scores beside the paper's", scores_section(results)),
        ("pretraining", "Pretraining", pretraining_section(story, files)),
        ("finetuning", "Scratch against pretrained", finetuning_section(story, files)),
        ("speed", "Throughput", speed_section(story, files)),
        ("recipes", "Recipes", recipes_section(story)),
        ("provenance", "Data, versions, checkpoints", provenance_section(story)),
        ("missing", "What is missing", _missing(story, notes)),
    ]
    links = [element("a", title, href=f"#{key}") for key, title, _ in sections]
    body = [
        element("h1", "colorgan report"),
        element("p", _made_by(story), class_="soft"),
        element("nav", *links, aria_label="Sections"),
        overview_section(story),
        *(element("section", element("h2", title), content, id=key) for key, title, content in sections),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "colorgan report"),
        element("style", Html(STYLE)),
    ]
    document = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _made_by(story: Story) -> str:
    tools = ", ".join(f"{name} {_version(name)}" for name in TOOLS)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"Made {when} from {len(story.runs)} runs, with Python {platform.python_version()}, {tools}."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _missing(story: Story, notes: Sequence[str]) -> Html:
    told = [*story.notes, *notes, *(f"{run.title}: {note}" for run in story.runs for note in run.notes)]
    told += [
        "Per-class scores, confusion and segmentation overlays: runs and evaluations do not write them.",
        "Best and worst pictures by PSNR: evaluations keep mean, minimum and maximum, and the first pictures.",
        "Versions of the libraries that trained: the log does not hold them; the source commit is in the checkpoints.",
    ]
    return element("ul", *(element("li", note) for note in told))


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
