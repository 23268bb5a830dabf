"""Sections of the report that are looked at: pictures over the course of training, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from colorgan.report_charts import COLOURS, Chart, Line, draw
from colorgan.report_html import Html, data_uri, element, join, table
from colorgan.report_pictures import Progress, jpeg_bytes, open_picture, png_bytes, progress, sheet
from colorgan.report_runs import RunFolder, Story
from colorgan.report_scores import METRICS, SCRATCH, data_name

Files = dict[str, bytes]  # what lies beside the page: name -> bytes
KIND_NAMES = {"pretrain": "pretraining", "classify": "classification", "segment": "segmentation"}

# The discriminator's loss, half of real plus half of generated, when it knows nothing.
CHANCE_LOSS = {"bce": 0.6931, "least_squares": 0.25, "hinge": 1.0}

DRAWN = {
    *("loss/generator", "loss/discriminator", "l1", "adversarial", "images_per_s", "wait_share"),
    *("discriminator_accuracy/real", "discriminator_accuracy/fake"),
    *("gradient_norm/generator", "gradient_norm/discriminator"),
}
MAX_OTHERS = 12  # a log of somebody else's making does not become a page of thousands of charts


def missing(text: str) -> Html:
    """Return a sentence that says what is not there."""
    return element("p", text, class_="missing")


def overview_section(story: Story) -> Html:
    """Return cards with the last colour scores, and the table of runs."""
    cards = [card for run in story.of("pretrain") if (card := _card(run)) is not None]
    rows = [
        [run.title, KIND_NAMES[run.kind], _start(run), str(run.seed), _length(run), data_name(_train(run))]
        for run in story.runs
    ]
    return join(
        [
            element("div", *cards, class_="cards") if cards else None,
            table(("Run", "What", "Starts from", "Seed", "Images seen", "Trained on"), rows)
            if rows
            else missing("No training run was given: only evaluations."),
        ]
    )


def progress_section(story: Story, files: Files) -> Html:
    """Return the same photos after growing shares of training, for each pretraining run."""
    parts: list[Html] = []
    for run in story.of("pretrain"):
        parts.append(element("h3", run.title))
        found = progress(run.pictures, run.total_images)
        if found is None:
            parts.append(
                missing("No pictures were saved: output.num_pictures is 0, there is no data.val, or no validation yet.")
            )
            continue
        rows = found.rows()
        files[f"progress-{run.number}.png"] = png_bytes(sheet(rows))
        seen = ", ".join(f"{stage.images:,}" for stage in found.stages)
        parts.append(element("p", f"Grey; coloured after {seen} images; original. Held-out photos.", class_="soft"))
        parts += [_photo(row) for row in rows[:4]]
    return join(parts) if parts else missing("No pretraining run was given.")


def coloured_section(story: Story, files: Files) -> Html:
    """Return grey, coloured, original of each pretraining run's last validation, and evaluations' pictures."""
    parts: list[Html] = []
    for run in story.of("pretrain"):
        found = progress(run.pictures[-1:], run.total_images)
        if found is not None:
            parts.append(element("h3", f"{run.title}: validation at {run.pictures[-1][0]:,} images"))
            parts.append(_triples(found))
    shown = {run.pictures[-1][1].read_bytes() for run in story.of("pretrain") if run.pictures}
    evaluations = [*story.evaluations, *(each for run in story.runs for each in run.evaluations)]
    for number, each in enumerate(evaluations, 1):
        picture = open_picture(each.picture) if each.picture else None
        if picture is None or each.picture is None or each.picture.read_bytes() in shown:
            continue
        files[f"evaluation-{number}.png"] = data = png_bytes(picture)
        found = progress([(each.images_seen or 0, each.picture)], None)
        whole = element("img", class_="whole", src=data_uri(data, "image/png"), alt="grey, coloured, original")
        parts.append(element("h3", f"Evaluation of {each.model} ({each.inference} inference)"))
        parts.append(_triples(found) if found else whole)
    return join(parts) if parts else missing("No coloured pictures: no pretraining run or evaluation of a generator.")


def pretraining_section(story: Story, files: Files) -> Html:
    """Return losses of both networks, colour scores over training, and the signs of a healthy GAN."""
    runs = story.of("pretrain")
    if not runs:
        return missing("No pretraining run was given.")
    colours = {run.number: place for place, run in enumerate(runs)}

    def one(name: str, kind: str = "train", suffix: str = "", dash: str = "-") -> list[Line]:
        found = ((run, run.curve(kind, name)) for run in runs)
        return [Line(run.title + suffix, points, colours[run.number], dash) for run, points in found if points]

    losses: list[Spec] = [
        ("Generator loss", one("loss/generator"), "adversarial term and weighted L1", {}),
        ("Discriminator loss", one("loss/discriminator"), "", {}),
        ("L1 of the chroma", one("l1"), "normalised a and b, before its weight", {}),
        ("Adversarial loss of the generator", one("adversarial"), "before its weight", {}),
    ]
    for name, key, unit in (("PSNR", "psnr", "dB"), ("SSIM", "ssim", "")):
        lines = one(key, "validate") + one(f"grey_{key}", "validate", ", grey", ":")
        losses.append((f"{name} at validation", lines, "dotted: the same pictures left grey", {"unit": unit}))
    real, fake = (f"discriminator_accuracy/{what}" for what in ("real", "fake"))
    known = one(real, suffix=", real") + one(fake, suffix=", generated", dash="--")
    vivid = one("colourfulness", "validate") + one("original_colourfulness", "validate", ", original", ":")
    told = "share of patches; solid: real ones called real, dashed: generated ones found out"
    met = dict.fromkeys(name for run in runs for name in run.names("train"))
    undrawn = [name for name in met if name not in DRAWN][:MAX_OTHERS]
    others: list[Spec] = [(name, one(name), "as logged", {}) for name in undrawn]
    health: list[Spec] = [
        ("Discriminator accuracy", known, told, {"bounds": (-0.02, 1.02)}),
        ("Gradient norm, generator", one("gradient_norm/generator"), "before clipping", {"log": True}),
        ("Gradient norm, discriminator", one("gradient_norm/discriminator"), "before clipping", {"log": True}),
        ("Colourfulness at validation", vivid, "Hasler and Süsstrunk's; dotted: the originals", {}),
    ]
    verdicts = [element("li", f"{run.title}: {_health(run)}") for run in runs]
    legend = _legend([(run.title, colours[run.number]) for run in runs])
    title = element("h3", "Health of the GAN")
    return join([legend, _charts(files, losses), title, element("ul", *verdicts), _charts(files, health + others)])


def finetuning_section(story: Story, files: Files) -> Html:
    """Return loss and scores over fine-tuning, scratch against pretrained, for each task."""
    parts: list[Html] = []
    for task in ("classify", "segment"):
        runs = story.of(task)
        if not runs:
            continue
        starts = list(dict.fromkeys(_start(run) for run in sorted(runs, key=lambda run: _start(run) != SCRATCH)))
        place = {run.number: starts.index(_start(run)) for run in runs}

        def curves(kind: str, name: str, runs: Sequence[RunFolder] = runs, place: dict[int, int] = place) -> list[Line]:
            found = ((run, run.curve(kind, name)) for run in runs)
            return [Line(run.title, points, place[run.number]) for run, points in found if points]

        title = KIND_NAMES[task].capitalize()
        drawn: list[Spec] = [(f"{title}: training loss", curves("train", "loss/model"), "a line a run", {})]
        at_end = all(len(run.curve("validate", metric.key)) < 2 for run in runs for metric in METRICS[task])
        for metric in () if at_end else METRICS[task]:
            lines = [replace(line, points=_percent(line.points)) for line in curves("validate", metric.key)]
            drawn.append((f"{title}: {metric.name}", lines, metric.meaning, {"unit": metric.unit}))
        parts.append(element("h3", title))
        parts.append(_legend([(start, index) for index, start in enumerate(starts)]))
        parts.append(_charts(files, drawn))
        if at_end:
            parts.append(missing("No curves of the scores: these runs validated at their end only; see the tables."))
    return join(parts) if parts else missing("No fine-tuning run was given.")


def speed_section(story: Story, files: Files) -> Html:
    """Return how fast each run was and how long it waited for pictures."""
    rows = []
    for run in story.runs:
        speed, wait = run.curve("train", "images_per_s"), run.curve("train", "wait_share")
        starts = [entry for entry in run.log if entry["kind"] == "event" and entry.get("text") == "started"]
        ranks = str(starts[-1].get("ranks", "–")) if starts else "–"
        mean = _mean_speed(speed)
        share = sum(value for _, value in wait) / len(wait) if wait else None
        cells = [
            run.title,
            ranks,
            f"{mean:,.1f}" if mean else "–",
            f"{100 * share:.1f} %" if share is not None else "–",
        ]
        rows.append([*cells, str(len(starts)), str(run.setting("batch.precision", "–"))])
    if not rows:
        return missing("No training run was given.")
    lines = [Line(run.title, p, i) for i, run in enumerate(story.runs) if (p := run.curve("train", "images_per_s"))]
    waits = [(run.title, _percent(run.curve("train", "wait_share")), place) for place, run in enumerate(story.runs)]
    charts = _charts(
        files,
        [
            ("Images a second", lines, "all ranks together", {}),
            ("Waiting for the loader", [Line(*each) for each in waits if each[1]], "share of the time", {"unit": "%"}),
        ],
    )
    header = ("Run", "Ranks", "Images/s, mean", "Loader wait, mean", "Starts", "Precision")
    return join([table(header, rows), _legend([(run.title, i) for i, run in enumerate(story.runs)]), charts])


def _card(run: RunFolder) -> Html | None:
    scores = run.last_scores
    if "psnr" not in scores:
        return None
    grey = scores.get("grey_psnr")
    beside = ""
    if grey is not None:
        gap = scores["psnr"] - grey
        beside = f"{abs(gap):.2f} dB {'above' if gap > 0 else 'below'} the same pictures left grey. "
    what = f"{beside}{scores.get('images', 0):,.0f} held-out pictures, after {run.last_scores_images:,} images."
    return element(
        "div",
        element("span", run.title),
        element("b", f"{scores['psnr']:.2f} dB PSNR"),
        element("span", what, class_="soft"),
        class_="card",
    )


def _start(run: RunFolder) -> str:
    init = run.setting("init", SCRATCH)
    return SCRATCH if run.kind == "pretrain" or init == SCRATCH else f"generator {init}"


def _length(run: RunFolder) -> str:
    total = f" of {run.total_images:,}" if run.total_images else ""
    return f"{run.images_seen:,}" if run.finished else f"{run.images_seen:,}{total}, not at its end"


def _train(run: RunFolder) -> list[str]:
    folders = run.setting("data.train", [])
    return [str(each) for each in folders] if isinstance(folders, list) else [str(folders)]


def _photo(row: Sequence[tuple[str, Image.Image]]) -> Html:
    cells = [_cell(caption, picture) for caption, picture in row]
    return element("div", *cells, class_="photo", style=f"--count: {len(row)}")


def _cell(caption: str, picture: Image.Image) -> Html:
    source = data_uri(jpeg_bytes(picture), "image/jpeg")
    image = element("img", src=source, alt=caption, width=picture.width, height=picture.height, loading="lazy")
    return element("figure", image, element("figcaption", caption))


def _triples(found: Progress) -> Html:
    rows = [
        [(name if i != 1 else "coloured", picture) for i, (name, picture) in enumerate(row)] for row in found.rows()
    ]
    return element("div", *(_photo(row) for row in rows), class_="photos")


Spec = tuple[str, list[Line], str, dict[str, object]]


def _charts(files: Files, specs: Sequence[Spec]) -> Html:
    """Draw what has data; name what has none."""
    figures, absent = [], []
    for title, lines, note, options in specs:
        if not lines:
            absent.append(title)
            continue
        chart: Chart = draw(title, lines, **options)  # type: ignore[arg-type]
        files[_file_name(title)] = chart.png
        caption = element("figcaption", title, element("span", note, class_="note") if note else None)
        figures.append(element("figure", caption, element("div", chart.svg, role="img", aria_label=_told(chart))))
    gone = missing(f"Not in the logs: {', '.join(absent)}.") if absent else None
    return join([element("div", *figures, class_="charts"), gone])


def _told(chart: Chart) -> str:
    ends = [f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in chart.lines[:8]]
    return f"{chart.title}: {'; '.join(ends)}"


def _file_name(title: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    return f"{'-'.join(words)[:80] or 'chart'}.png"


def _legend(entries: Sequence[tuple[str, int]]) -> Html:
    def swatch(place: int) -> Html:
        return element("span", class_="swatch", style=f"border-color: var(--line-{place % len(COLOURS)})")

    return element("ul", *(element("li", swatch(place), name) for name, place in entries), class_="legend")


def _percent(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(images, 100 * value) for images, value in points]


def _mean_speed(points: Sequence[tuple[int, float]]) -> float | None:
    """Images over time, from images a second of stretches."""
    pairs = [
        (images - before, speed) for (images, speed), (before, _) in zip(points, [(0, 0.0), *points], strict=False)
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
        return "trained without a discriminator." if run.setting("loss.gan") == "none" else "not in the log."
    share = sum(late) / len(late) / chance
    seen = f"in the last third the discriminator's loss was {100 * share:.0f} % of that of guessing"
    if share < 0.2:
        return f"{seen}: it tells nearly all generated patches from real ones and is far ahead of the generator."
    return f"{seen}: {'it can hardly tell them apart.' if share > 0.9 else 'neither has won.'}"
