"""Sections of the report on how training went: both networks' losses, signs of a healthy GAN, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from colorgan.files import short
from colorgan.report.drawing.charts import Line
from colorgan.report.drawing.figures import Files, Spec, charts, legend, percent
from colorgan.report.drawing.html import Html, element, join, table
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder

# The discriminator's loss, half of real plus half of generated, when it knows nothing.
CHANCE_LOSS = {"bce": 0.6931, "least_squares": 0.25, "hinge": 1.0}

DRAWN = {
    *("loss/generator", "loss/discriminator", "l1", "adversarial", "images_per_s", "wait_share"),
    *("discriminator_accuracy/real", "discriminator_accuracy/fake"),
    *("gradient_norm/generator", "gradient_norm/discriminator"),
}
MAX_OTHERS = 12  # a log of somebody else's making does not become a page of thousands of charts


def pretraining_section(report_data: ReportData, files: Files) -> Html:
    """Return losses of both networks, colour scores over training, and the signs of a healthy GAN."""
    runs = report_data.of("pretrain")
    verdicts = [element("li", f"{run.title}: {_health(run)}") for run in runs]
    named = legend([(run.title, place) for place, run in enumerate(runs)])
    further = charts(files, _others(runs))
    return join(
        [
            named,
            charts(files, [*_losses(runs), *_scores(runs)]),
            element("h3", "Health of the GAN"),
            element("ul", *verdicts),
            charts(files, _signs(runs)),
            element("details", element("summary", "Further values in the logs"), named, further)
            if further
            else None,
        ]
    )


def _lines(
    runs: Sequence[RunFolder], name: str, kind: str = "train", suffix: str = "", dash: str = "-"
) -> list[Line]:
    found = ((place, run, run.curve(kind, name)) for place, run in enumerate(runs))
    return [Line(run.title + suffix, points, place, dash) for place, run, points in found if points]


def _losses(runs: Sequence[RunFolder]) -> list[Spec]:
    return [
        ("Generator loss", _lines(runs, "loss/generator"), "adversarial term and weighted L1", {}),
        ("Discriminator loss", _lines(runs, "loss/discriminator"), "", {}),
        ("L1 of the chroma", _lines(runs, "l1"), "normalised a and b, before its weight", {}),
        ("Adversarial loss of the generator", _lines(runs, "adversarial"), "before its weight", {}),
    ]


def _scores(runs: Sequence[RunFolder]) -> list[Spec]:
    told = "dotted: the same pictures left grey"
    return [
        (
            f"{name} at validation",
            _lines(runs, key, "validate") + _lines(runs, f"grey_{key}", "validate", ", grey", ":"),
            told,
            {"unit": unit},
        )
        for name, key, unit in (("PSNR", "psnr", "dB"), ("SSIM", "ssim", ""))
    ]


def _signs(runs: Sequence[RunFolder]) -> list[Spec]:
    real, fake = (f"discriminator_accuracy/{what}" for what in ("real", "fake"))
    known = _lines(runs, real, suffix=", real") + _lines(
        runs, fake, suffix=", generated", dash="--"
    )
    original = _lines(runs, "original_colourfulness", "validate", ", original", ":")
    vivid = _lines(runs, "colourfulness", "validate") + original
    told = "share of patches; solid: real ones called real, dashed: generated ones found out"
    norms: list[Spec] = [
        (
            f"Gradient norm, {who}",
            _lines(runs, f"gradient_norm/{who}"),
            "before clipping",
            {"log": True},
        )
        for who in ("generator", "discriminator")
    ]
    return [
        ("Discriminator accuracy", known, told, {"bounds": (-0.02, 1.02)}),
        *norms,
        ("Colourfulness at validation", vivid, "Hasler and Süsstrunk's; dotted: the originals", {}),
    ]


def _others(runs: Sequence[RunFolder]) -> list[Spec]:
    met = dict.fromkeys(name for run in runs for name in run.names("train"))
    undrawn = [name for name in met if name not in DRAWN][:MAX_OTHERS]
    return [(short(name), _lines(runs, name), "as logged", {}) for name in undrawn]


def speed_section(report_data: ReportData, files: Files) -> Html:
    """Return how fast each run was and how long it waited for pictures."""
    header = (
        "Run",
        "Ranks",
        "Images/s, mean",
        "Loader wait, mean",
        "Starts",
        "Precision",
        "Device",
    )
    lines = _lines(report_data.runs, "images_per_s")
    waits = [
        replace(line, points=percent(line.points))
        for line in _lines(report_data.runs, "wait_share")
    ]
    drawn: list[Spec] = [
        ("Images a second", lines, "all ranks together", {}),
        ("Waiting for the loader", waits, "share of the time", {"unit": "%"}),
    ]
    named = legend([(run.title, place) for place, run in enumerate(report_data.runs)])
    return join(
        [table(header, [_speed_row(run) for run in report_data.runs]), named, charts(files, drawn)]
    )


def _speed_row(run: RunFolder) -> list[str]:
    wait = [value for _, value in run.curve("train", "wait_share")]
    mean = mean_speed(run.curve("train", "images_per_s"))
    started = run.starts[-1] if run.starts else {}
    return [
        run.title,
        short(started.get("ranks", "–"), 20),
        f"{mean:,.1f}" if mean else "–",
        f"{100 * sum(wait) / len(wait):.1f} %" if wait else "–",
        str(len(run.starts)),
        short(run.setting("batch.precision", "–"), 20),
        short(started.get("device", "–")),
    ]


def mean_speed(points: Sequence[tuple[int, float]]) -> float | None:
    """Return images over time, from images a second of stretches."""
    pairs = [
        (images - before, speed)
        for (images, speed), (before, _) in zip(points, [(0, 0.0), *points], strict=False)
    ]
    pairs = [(count, speed) for count, speed in pairs if count > 0 and speed > 0]
    seconds = sum(count / speed for count, speed in pairs)
    return sum(count for count, _ in pairs) / seconds if seconds else None


def _health(run: RunFolder) -> str:
    """What the last third of the log says of the balance of the two networks, by the discriminator's loss."""
    losses = [value for _, value in run.curve("train", "loss/discriminator")]
    late = losses[-max(1, len(losses) // 3) :]
    chance = CHANCE_LOSS.get(str(run.setting("loss.gan")))
    if not late or chance is None:
        return (
            "trained without a discriminator."
            if run.setting("loss.gan") == "none"
            else "not in the log."
        )
    share = sum(late) / len(late) / chance
    seen = f"in the last third the discriminator's loss was {100 * share:.0f} % of that of guessing"
    if share < 0.2:
        return f"{seen}: it tells nearly all generated patches from real ones and is far ahead of the generator."
    return f"{seen}: {'it can hardly tell them apart.' if share > 0.9 else 'neither has won.'}"
