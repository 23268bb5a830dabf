"""Sections of the report with photographs: learning progress, coloured photos with the best and worst, overlays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from colorgan.evaluation.record import SavedEvaluation
from colorgan.files import short
from colorgan.report.drawing.figures import Files
from colorgan.report.drawing.html import Html, data_uri, element, join, missing
from colorgan.report.drawing.photos import (
    jpeg_bytes,
    narrowed,
    open_picture,
    png_bytes,
    progress,
    sheet,
)
from colorgan.report.published import OWN_SIZE
from colorgan.report.report_data import ReportData

Row = Sequence[tuple[str, Image.Image]]
NUM_PHOTOS = 4  # of one run's progress, and of its best and its worst
COLOUR_SCORES = (
    ("PSNR", "psnr", 2, "\u00a0dB"),
    ("left grey", "grey_psnr", 2, "\u00a0dB"),
    ("SSIM", "ssim", 3, ""),
    ("left grey", "grey_ssim", 3, ""),
    ("CIEDE2000", "ciede2000", 2, ""),
    ("left grey", "grey_ciede2000", 2, ""),
    ("colourfulness over the originals'", "colourfulness_ratio", 2, ""),
)
ENDS = (("best", "Best by PSNR"), ("worst", "Worst by PSNR"))


def progress_section(report_data: ReportData, files: Files) -> Html:
    """Return the same photos after growing shares of training, for each pretraining run."""
    parts: list[Html] = []
    for run in report_data.of("pretrain"):
        parts.append(element("h3", run.title))
        found = progress(run.pictures, run.total_images)
        if found is None:
            parts.append(
                missing(
                    "No pictures were saved: output.num_pictures is 0, there is no data.val, or no validation yet."
                )
            )
            continue
        rows = found.rows()
        files[f"progress-{run.number}.png"] = png_bytes(sheet(rows))
        seen = ", ".join(f"{stage.images:,}" for stage in found.stages)
        parts.append(
            element(
                "p",
                f"Grey; coloured after {seen} images; original. Held-out photos.",
                class_="soft",
            )
        )
        parts += [_photo(row) for row in rows[:NUM_PHOTOS]]
    return join(parts)


def colored_section(report_data: ReportData, files: Files) -> Html:
    """Return grey, coloured, original with their PSNR: each run's last validation, evaluations' best and worst."""
    parts: list[Html] = []
    for run in report_data.of("pretrain"):
        rows = _triples(run.pictures[-1][1]) if run.pictures else []
        if rows:
            parts.append(
                element("h3", f"{run.title}: validation at {run.pictures[-1][0]:,} images")
            )
            parts.append(
                element(
                    "p", f"The first {len(rows)} held-out photos, best PSNR first.", class_="soft"
                )
            )
            parts.append(_photos(sorted(rows, key=_psnr, reverse=True)))
    evaluations = [
        *report_data.evaluations,
        *(each for run in report_data.runs for each in run.evaluations),
    ]
    for number, each in enumerate(
        (each for each in evaluations if each.kind in ("generator", "")), 1
    ):
        shown = [
            piece
            for what, title in ENDS
            if (piece := _end(each, what, title, number, files)) is not None
        ]
        if not shown and "pictures" in each.pictures:
            whole = _end(each, "pictures", "Its first photos", number, files)
            shown = [whole] if whole is not None else []
        if shown:
            counted = f"{each.scores.get('images', 0):,.0f} photos, {each.inference} inference"
            parts += [
                element("h3", f"SavedEvaluation of {short(each.model)} ({counted})"),
                *_told(each.scores),
                *shown,
            ]
    return join(parts)


def _told(scores: Mapping[str, float]) -> list[Html]:
    """A line of scores at the network's size, and one at each photo's own where there is one."""
    lines = []
    for where, ending in (("At the network's size", ""), ("At each photo's own size", OWN_SIZE)):
        values = [
            f"{name} {scores[key + ending]:.{digits}f}{unit}"
            for name, key, digits, unit in COLOUR_SCORES
            if key + ending in scores
        ]
        if values:
            lines.append(element("p", f"{where}: {', '.join(values)}.", class_="soft"))
    return lines


def _end(each: SavedEvaluation, what: str, title: str, number: int, files: Files) -> Html | None:
    """The photos of one picture file, cut where it is a grid of squares."""
    path = each.pictures.get(what)
    picture = open_picture(path) if path else None
    if path is None or picture is None:
        return None
    files[f"evaluation-{number}-{what}.png"] = png_bytes(picture)
    rows = _triples(path)[:NUM_PHOTOS]
    return join(
        [
            element("h4", title),
            _photos(rows) if rows else whole_picture(picture, "grey, coloured, original"),
        ]
    )


def whole_picture(picture: Image.Image, told: str) -> Html:
    """Return a picture as it is, no wider than a page shows it."""
    source = data_uri(jpeg_bytes(narrowed(picture)), "image/jpeg")
    return element("img", class_="whole", src=source, alt=told, loading="lazy")


def _triples(path: Path) -> list[list[tuple[str, Image.Image]]]:
    """Rows of grey, coloured, original; the coloured one's caption is its PSNR; [] where it is no such grid."""
    found = progress([(0, path)], None)
    if found is None:
        return []
    rows = []
    for (_, grey), (_, colored), (_, original) in found.rows():
        told = f"{psnr_db(colored, original):.1f} dB"
        rows.append(
            [
                (f"grey, {psnr_db(grey, original):.1f} dB", grey),
                (told, colored),
                ("original", original),
            ]
        )
    return rows


def psnr_db(picture: Image.Image, original: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB pictures of 8 bits; 99 for equal ones."""
    squares = ImageStat.Stat(ImageChops.difference(picture, original)).sum2
    error = sum(squares) / (3 * picture.width * picture.height)
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))


def _psnr(row: Row) -> float:
    return psnr_db(row[1][1], row[2][1])


def _photos(rows: Sequence[Row]) -> Html:
    return element("div", *(_photo(row) for row in rows), class_="photos")


def _photo(row: Row) -> Html:
    cells = [_cell(caption, picture) for caption, picture in row]
    return element("div", *cells, class_="photo", style=f"--count: {len(row)}")


def _cell(caption: str, picture: Image.Image) -> Html:
    source = data_uri(jpeg_bytes(picture), "image/jpeg")
    image = element(
        "img", src=source, alt=caption, width=picture.width, height=picture.height, loading="lazy"
    )
    return element("figure", image, element("figcaption", caption))
