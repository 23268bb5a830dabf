"""Sections of the report with photos: learning progress, colored photos, best and worst."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from colorgan.evaluation.record import SavedEvaluation
from colorgan.files import short
from colorgan.report.blocks import Block, Heading, Text
from colorgan.report.charts import Files
from colorgan.report.photos import (
    MAX_PHOTOS,
    open_picture,
    photos_block,
    picture_block,
    png_bytes,
    progress,
    sheet,
    triples,
)
from colorgan.report.published import OWN_SIZE
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder

# More would push the other sections off the first screens.
NUM_PHOTOS = 4  # of one run's progress, and of its best and its worst
COLOR_SCORES = (
    ("PSNR", "psnr", 2, "\u00a0dB"),
    ("left grey", "grey_psnr", 2, "\u00a0dB"),
    ("SSIM", "ssim", 3, ""),
    ("left grey", "grey_ssim", 3, ""),
    ("CIEDE2000", "ciede2000", 2, ""),
    ("left grey", "grey_ciede2000", 2, ""),
    ("colorfulness over the originals'", "colourfulness_ratio", 2, ""),
    ("near-grey photos", "near_grey_images", 0, ""),
    ("PSNR without them", "psnr_without_near_grey", 2, "\u00a0dB"),
    ("left grey", "grey_psnr_without_near_grey", 2, "\u00a0dB"),
)
ENDS = (("best", "Best by PSNR"), ("worst", "Worst by PSNR"))
HOW_TO_LOOK = "Click a photo to enlarge it and to slide from grey to colored to original."


def progress_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return the same photos after growing shares of training, per pretraining run."""
    blocks: list[Block] = []
    for run in report_data.of("pretrain"):
        blocks.append(Heading(run.title))
        if not run.pictures:
            blocks.append(
                Text(
                    "No pictures were saved: output.num_pictures is 0, there is no data.val, or no "
                    "validation yet.",
                    "missing",
                )
            )
            continue

        # Runs of older versions have captioned grids alone.
        rows = progress(run.pictures, run.total_images)
        if rows:
            files[f"progress-{run.number}.png"] = png_bytes(sheet(rows))
            blocks.append(Text("Held-out photos after a share of the training.", "soft"))
            blocks.append(photos_block(rows[:NUM_PHOTOS]))
        else:
            blocks += _whole(run.pictures[-1][1], "grey, colored, original")
    return blocks


def _whole(path: Path | None, caption: str, title: str = "") -> list[Block]:
    """Return a picture as it was saved; nothing if it cannot be read."""
    picture = open_picture(path)
    return [] if picture is None else [picture_block(picture, caption, title)]


def colored_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return grey, colored and original photos: last validations, evaluations' best and worst."""
    blocks: list[Block] = []
    for run in report_data.of("pretrain"):
        blocks += _last_validation(run)

    evaluations = [*report_data.evaluations]
    for run in report_data.runs:
        evaluations += run.evaluations
    # Without a kind: evaluations of older versions.
    generators = [each for each in evaluations if each.kind in ("generator", "")]
    for number, each in enumerate(generators, 1):
        blocks += _evaluation(each, number, files)
    return blocks


def _last_validation(run: RunFolder) -> list[Block]:
    if not run.pictures:
        return []
    images, path = run.pictures[-1]
    rows = triples(path)[:MAX_PHOTOS]
    if not rows:
        return []
    return [
        Heading(f"{run.title}: validation at {images:,} images"),
        Text(f"Held-out photos, the largest gain over grey first. {HOW_TO_LOOK}", "soft"),
        photos_block(rows, compare=True),
    ]


def _evaluation(each: SavedEvaluation, number: int, files: Files) -> list[Block]:
    shown: list[Block] = []
    for what, title in ENDS:
        shown += _end(each, what, title, number, files)
    # An evaluation of few photos has no best and worst.
    if not shown:
        shown = _end(
            each,
            "pictures",
            "Its first photos",
            number,
            files,
        )
    if not shown:
        return []

    counted = f"{each.scores.get('images', 0):,.0f} photos, {each.inference} inference"
    heading = Heading(f"Evaluation of {short(each.model)} ({counted})")
    return [heading, *score_lines(each.scores), *shown]


def score_lines(scores: Mapping[str, float]) -> list[Block]:
    """Return a line of scores at the network's size, and one at the photos' own where known."""
    lines: list[Block] = []
    for where, ending in (("At the network's size", ""), ("At each photo's own size", OWN_SIZE)):
        values = []
        for name, key, digits, unit in COLOR_SCORES:
            if key + ending in scores:
                values.append(f"{name} {scores[key + ending]:.{digits}f}{unit}")
        if values:
            lines.append(Text(f"{where}: {', '.join(values)}.", "soft"))
    return lines


def _end(each: SavedEvaluation, what: str, title: str, number: int, files: Files) -> list[Block]:
    """Return the photos of one picture file: by strips where there are, else whole."""
    path = each.pictures.get(what)
    picture = open_picture(path)
    if path is None or picture is None:
        return []

    files[f"evaluation-{number}-{what}.png"] = png_bytes(picture)
    rows = triples(path)[:NUM_PHOTOS]
    if rows:
        return [Heading(title, 4), photos_block(rows, compare=True)]
    return [Heading(title, 4), picture_block(picture, "grey, colored, original")]
