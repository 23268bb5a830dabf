"""Sections of the report on training: both networks' losses, signs of a healthy GAN, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from colorgan.files import short
from colorgan.report.blocks import Block, Folded, Heading, Items, Legend, Table
from colorgan.report.charts import ChartSpec, Files, Line, charts, percent
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder

# The discriminator's loss, half of real plus half of generated, when it can only guess.
CHANCE_LOSS = {"bce": 0.6931, "least_squares": 0.25, "hinge": 1.0}
# Below this share of it the discriminator is far ahead, above the other it hardly tells them apart.
FAR_AHEAD, GUESSING = 0.2, 0.9

DRAWN = {
    "loss/generator",
    "loss/discriminator",
    "l1",
    "adversarial",
    "images_per_s",
    "wait_share",
    "discriminator_accuracy/real",
    "discriminator_accuracy/fake",
    "gradient_norm/generator",
    "gradient_norm/discriminator",
}
MAX_OTHERS = 12  # a foreign log must not become a page of thousands of charts
NO_VALUE = "–"


def pretraining_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return losses, color scores over training, and the signs of a healthy GAN."""
    runs = report_data.of("pretrain")
    if not runs:
        return []

    # One legend for all charts: a color is a run everywhere.
    legend = Legend([run.title for run in runs])
    blocks: list[Block] = [legend, *charts(files, [*_losses(runs), *_scores(runs)])]
    blocks += [
        Heading("Health of the GAN"),
        Items([f"{run.title}: {_health(run)}" for run in runs]),
        *charts(files, _signs(runs)),
    ]
    further = charts(files, _others(runs))
    if further:
        blocks.append(Folded("Further values in the logs", [legend, *further]))
    return blocks


def _lines(
    runs: Sequence[RunFolder], name: str, kind: str = "train", suffix: str = "", dash: str = "-"
) -> list[Line]:
    lines = []
    for place, run in enumerate(runs):
        points = run.curve(kind, name)
        if points:
            lines.append(Line(run.title + suffix, points, place, dash))
    return lines


def _losses(runs: Sequence[RunFolder]) -> list[ChartSpec]:
    adversarial = _lines(runs, "adversarial")
    return [
        ChartSpec(
            "Generator loss",
            _lines(runs, "loss/generator"),
            "adversarial term and weighted color loss",
        ),
        ChartSpec("Discriminator loss", _lines(runs, "loss/discriminator")),
        ChartSpec(
            "L1 of the chroma",
            _lines(runs, "l1"),
            "normalized a and b, before its weight",
        ),
        ChartSpec(
            "Adversarial loss of the generator",
            adversarial,
            "before its weight",
        ),
    ]


def _scores(runs: Sequence[RunFolder]) -> list[ChartSpec]:
    specs = []
    for name, key, unit in (("PSNR", "psnr", "dB"), ("SSIM", "ssim", "")):
        lines = _lines(runs, key, "validate")
        lines += _lines(runs, f"grey_{key}", "validate", ", grey", ":")
        note = "dotted: the same images left grey"
        specs.append(
            ChartSpec(
                f"{name} at validation",
                lines,
                note,
                unit,
            )
        )
    return specs


def _signs(runs: Sequence[RunFolder]) -> list[ChartSpec]:
    accuracy = _lines(
        runs,
        "discriminator_accuracy/real",
        suffix=", real",
    )
    accuracy += _lines(
        runs,
        "discriminator_accuracy/fake",
        suffix=", generated",
        dash="--",
    )
    vivid = _lines(runs, "colourfulness", "validate")
    vivid += _lines(
        runs,
        "original_colourfulness",
        "validate",
        ", original",
        ":",
    )

    note = "share of patches; solid: real called real, dashed: generated called generated"
    specs = [
        ChartSpec(
            "Discriminator accuracy",
            accuracy,
            note,
            bounds=(-0.02, 1.02),
        )
    ]
    for network in ("generator", "discriminator"):
        norms = _lines(runs, f"gradient_norm/{network}")
        specs.append(
            ChartSpec(
                f"Gradient norm, {network}",
                norms,
                "before clipping",
                log=True,
            )
        )
    note = "Hasler and Süsstrunk's measure; dotted: the originals"
    return [
        *specs,
        ChartSpec(
            "Colorfulness at validation",
            vivid,
            note,
        ),
    ]


def _others(runs: Sequence[RunFolder]) -> list[ChartSpec]:
    # In the order of the log, each once.
    names = dict.fromkeys(name for run in runs for name in run.names("train"))
    undrawn = [name for name in names if name not in DRAWN][:MAX_OTHERS]
    return [
        ChartSpec(
            short(name),
            _lines(runs, name),
            "as logged",
        )
        for name in undrawn
    ]


def speed_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return each run's speed and its share of time waiting for images."""
    runs = report_data.runs
    if not runs:
        return []

    waits = []
    for line in _lines(runs, "wait_share"):
        waits.append(replace(line, points=percent(line.points)))
    specs = [
        ChartSpec(
            "Images per second",
            _lines(runs, "images_per_s"),
            "all ranks together",
        ),
        ChartSpec(
            "Waiting for the loader",
            waits,
            "share of the time",
            "%",
        ),
    ]
    header = (
        "Run",
        "Ranks",
        "Images/s, mean",
        "Loader wait, mean",
        "Starts",
        "Precision",
        "Device",
    )
    table = Table(header, [_speed_row(run) for run in runs])
    return [table, Legend([run.title for run in runs]), *charts(files, specs)]


def _speed_row(run: RunFolder) -> list[str]:
    waits = [value for _, value in run.curve("train", "wait_share")]
    mean = mean_speed(run.curve("train", "images_per_s"))
    started = run.starts[-1] if run.starts else {}
    return [
        run.title,
        short(started.get("ranks", NO_VALUE), 20),
        f"{mean:,.1f}" if mean else NO_VALUE,
        f"{100 * sum(waits) / len(waits):.1f} %" if waits else NO_VALUE,
        str(len(run.starts)),
        short(run.setting("batch.precision", NO_VALUE), 20),
        short(started.get("device", NO_VALUE)),
    ]


def mean_speed(points: Sequence[tuple[int, float]]) -> float | None:
    """Return images over time, from images per second of stretches."""
    # Weighted by images: stretches between log lines differ after a resume.
    total = seconds = before = 0.0
    for images, speed in points:
        count = images - before
        before = images
        if count > 0 and speed > 0:
            total += count
            seconds += count / speed
    return total / seconds if seconds else None


def _health(run: RunFolder) -> str:
    """Return the balance of the two networks in the last third of the log."""
    losses = [value for _, value in run.curve("train", "loss/discriminator")]
    # The beginning says little: both networks are still random.
    late = losses[-max(1, len(losses) // 3) :]
    chance = CHANCE_LOSS.get(str(run.setting("loss.gan")))
    if run.setting("loss.gan") == "none":
        return "trained without a discriminator."
    if not late or chance is None:
        return "not in the log."

    share = sum(late) / len(late) / chance
    seen = f"in the last third the discriminator's loss was {100 * share:.0f} % of that of guessing"
    if share < FAR_AHEAD:
        return (
            f"{seen}: it recognizes nearly all generated patches and is far ahead of the generator."
        )
    if share > GUESSING:
        return f"{seen}: it hardly tells generated patches from real ones."
    return f"{seen}: neither network has won."
