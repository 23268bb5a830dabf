"""The page of results, docs/transfer.md, made from the records of studies: no number is typed.

    python benchmarks/results.py --collect runs/two_cores          docs/results/two_cores.json
    python benchmarks/results.py --generator runs/best_64px --core_minutes 70
                                                      docs/results/generators/best_64px.json
    python benchmarks/results.py                                   docs/transfer.md and transfer.png

`--collect` keeps what the page quotes of a finished study: study.json, each pretraining recipe and
its generators' scores; `--generator` the scores of a single run, which `evaluate --out
RUN/evaluation` has written. The words of the page stand in transfer.md.jinja beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colorgan.evaluation.record import EVALUATION, SCORES
from colorgan.files import replacing
from colorgan.probes.record import Probe, read_probe
from colorgan.report.charts import GRID, SETTINGS, color_of
from colorgan.runs.reading import read_run
from colorgan.study.bootstrap import student_quantile
from colorgan.study.record import ComparisonRecord, ProtocolRecord, StudyRecord, read_study

PROJECT = Path(__file__).resolve().parent.parent
RECORDS = PROJECT / "docs" / "results"
PAGE, FIGURE = PROJECT / "docs" / "transfer.md", PROJECT / "docs" / "transfer.png"
TEMPLATE = Path(__file__).with_name("transfer.md.jinja")

# What the page says of a generator, and how grey photos score by the same.
COLOR_SCORES = ("chroma_l1", "ciede2000", "psnr", "colourfulness")
# What tells pretraining recipes apart on the page.
RECIPE_KEYS = ("images", "network", "loss", "discriminator", "optimizer", "batch", "data")


@dataclass(frozen=True)
class Generator:
    """One pretraining run: its arm and seed, how long it took, and its scores beside grey's."""

    arm: str
    seed: str
    core_minutes: float | None
    images: int
    scores: dict[str, float]

    def change(self, key: str) -> float:
        """Return how far a score is under grey's, as a share of grey's."""
        grey = self.scores[f"grey_{key}"]
        return 1 - self.scores[key] / grey


@dataclass(frozen=True)
class LinearProbe:
    """One network's frozen features by linear classifiers: mean AP of each level, as shares.

    `best_level` counts from 0.
    """

    network: str
    test: int
    best_level: int
    mean_ap: tuple[float, ...]

    @property
    def score(self) -> float:
        """Of the level that the training part has chosen."""
        return self.mean_ap[self.best_level]


@dataclass(frozen=True)
class Result:
    """One study as the page sees it."""

    name: str
    study: StudyRecord
    recipes: dict[str, dict[str, Any]]
    generators: tuple[Generator, ...]
    probes: tuple[LinearProbe, ...]

    def probed(self, *, pretrained: bool) -> list[float]:
        """Return the scores of pretrained networks, or of random ones."""
        random = [each.network.startswith("random") for each in self.probes]
        return [
            each.score
            for each, is_random in zip(self.probes, random, strict=True)
            if is_random != pretrained
        ]

    @property
    def core_hours(self) -> float:
        """Of all steps, as measured."""
        return sum(self.study.core_minutes.values()) / 60


def collect(out: Path, name: str) -> Path:
    """Write what the page needs of a finished study; return the file.

    Args:
        out: `--out` of the study.
        name: of the record, without its ending.

    Raises:
        UsageError: the study has no study.json.
    """
    study = read_study(out)
    protocols = [_without_folders(protocol) for protocol in study.protocols]
    record = StudyRecord(protocols=tuple(protocols), core_minutes=study.core_minutes)

    recipes, generators = {}, []
    for run in sorted((out / "pretrain").iterdir()):
        arm, _, seed = run.name.partition("@")
        if not (run / EVALUATION / SCORES).is_file():
            continue
        recipe = read_run(run).recipe
        recipes[arm] = _without_machine(recipe)
        core_minutes = study.core_minutes.get(f"pretrain {run.name}")
        generators.append(_generator(run, arm, seed, core_minutes, recipe["images"]))

    probes = [
        _linear_probe(folder.name, read_probe(folder))
        for folder in sorted(out.glob("voc2007-linear*/*"))
        if (folder / "probe.json").is_file()
    ]
    text = {
        "probes": probes,
        "study": record.model_dump(mode="json"),
        "recipes": recipes,
        "generators": generators,
    }
    return _write_record(RECORDS / f"{name}.json", text)


def collect_generator(run: Path, core_minutes: float) -> Path:
    """Write what the page needs of a pretraining run that no study made; return the file.

    Args:
        run: its folder, with an `evaluation` folder in it.
        core_minutes: CPU time that it took.
    """
    recipe = read_run(run).recipe
    record = _generator(run, run.name, str(recipe["seed"]), core_minutes, recipe["images"])
    return _write_record(RECORDS / "generators" / f"{run.name}.json", record)


def read_generator(name: str) -> Generator:
    """Read a record that `collect_generator` wrote."""
    return Generator(**json.loads((RECORDS / "generators" / f"{name}.json").read_text()))


def _generator(
    run: Path, arm: str, seed: str, core_minutes: float | None, images: int
) -> dict[str, Any]:
    """Return the fields of `Generator`, with the scores that `evaluate` has left in the run."""
    scores = json.loads((run / EVALUATION / SCORES).read_text())["scores"]
    return {
        "arm": arm,
        "seed": seed,
        "core_minutes": core_minutes,
        "images": images,
        "scores": _color_scores(scores),
    }


def _write_record(path: Path, record: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


def _linear_probe(network: str, probe: Probe) -> dict[str, Any]:
    return {
        "network": network,
        "test": probe.test,
        "best_level": probe.best_linear,
        "mean_ap": [level[0] for level in probe.linear],
    }


def _without_machine(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a recipe apart; its sets by name, as their folders are of one machine."""
    kept = {key: recipe[key] for key in RECIPE_KEYS if key in recipe}
    data = dict(kept.get("data", {}))
    for part in ("train", "val"):
        data[part] = [Path(folder).name for folder in data.get(part, [])]
    return {**kept, "data": data}


def _without_folders(protocol: ProtocolRecord) -> ProtocolRecord:
    """Return a protocol without the folders of its runs, which are of one machine."""
    arms = [arm.model_copy(update={"runs": ()}) for arm in protocol.arms]
    return protocol.model_copy(update={"arms": tuple(arms)})


def _color_scores(scores: dict[str, Any]) -> dict[str, float]:
    keys = [key for name in COLOR_SCORES for key in (name, f"grey_{name}")]
    return {key: scores[key] for key in keys if key in scores}


def read_result(path: Path) -> Result:
    """Read a record that `collect` wrote."""
    text = json.loads(path.read_text())
    return Result(
        path.stem,
        StudyRecord.model_validate(text["study"]),
        text["recipes"],
        tuple(Generator(**each) for each in text["generators"]),
        tuple(LinearProbe(**each) for each in text["probes"]),
    )


def read_results() -> list[Result]:
    """Return the records of all studies, the first one's headline leads the page."""
    return [read_result(path) for path in sorted(RECORDS.glob("*.json"))]


def differences(
    results: Sequence[Result],
) -> Iterator[tuple[ProtocolRecord, ComparisonRecord]]:
    """Yield every comparison of every study."""
    for result in results:
        for protocol in result.study.protocols:
            for comparison in protocol.comparisons:
                yield protocol, comparison


def draw(results: Sequence[Result]) -> Figure:
    """Draw frozen features by level, and below the gain of every arm with its interval."""
    rows = list(differences(results))
    with mpl.rc_context(SETTINGS):
        heights = [2.6, 0.5 + 0.3 * len(rows)]
        figure = Figure(figsize=(7.4, sum(heights) + 0.8), layout="constrained", dpi=130)
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _draw_levels(above, results[0].probes)
        _draw_differences(below, rows)
    return figure


def _draw_levels(axes: Axes, probes: Sequence[LinearProbe]) -> None:
    """Draw one line per network: pretrained ones in one color, random ones in another."""
    labelled = set()
    for probe in probes:
        random = probe.network.startswith("random")
        label = "random weights" if random else "pretrained"
        levels = range(1, len(probe.mean_ap) + 1)
        axes.plot(
            levels,
            [100 * value for value in probe.mean_ap],
            "o--" if random else "o-",
            color=color_of(1 if random else 0),
            label=None if label in labelled else label,
        )
        labelled.add(label)

    axes.set_xlabel("level of the encoder, 1 the finest")
    axes.set_ylabel("mean AP, %")
    axes.set_title("Linear classifiers on frozen features, one line a network", fontsize=10)
    axes.legend(frameon=False)


def _draw_differences(axes: Axes, rows: Sequence[tuple[ProtocolRecord, ComparisonRecord]]) -> None:
    """Draw a bar per comparison from the lower to the upper end of its interval."""
    for place, (_, each) in enumerate(rows):
        low, middle, high = (100 * (value or 0) for value in (each.low, each.difference, each.high))
        color = color_of(0)
        axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round")
        axes.plot([middle], [place], "o", color=color, markersize=7)

    labels = [f"{each.arm} - {each.against}\n{protocol.name}" for protocol, each in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color=GRID, linewidth=2.5, zorder=0)
    axes.set_xlabel("gain in points, 95 % interval over photos and seeds")


def write_page(results: Sequence[Result]) -> str:
    """Return the text of the page."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    template = environment.from_string(TEMPLATE.read_text())
    by_name = {result.name: result for result in results}
    return template.render(
        results=by_name,
        best=read_generator("best_64px"),
        points=_points,
        gain=_gain,
        probed=_probed,
        probe_gain=_probe_gain,
        share=_share,
        times=_times,
        shown=_shown,
        pair=_pair,
        images=_images,
    )


def _points(value: float | None, digits: int = 2) -> str:
    """Return a share as points; a dash if there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _probed(result: Result, pretrained: bool) -> str:
    """Return the range of the networks' scores."""
    scores = result.probed(pretrained=pretrained)
    return f"{_points(min(scores), 1)} to {_points(max(scores), 1)}"


def _probe_gain(result: Result) -> str:
    """Return the difference of the means in points, with Student's interval over the networks."""
    groups = [result.probed(pretrained=which) for which in (True, False)]
    gain = fmean(groups[0]) - fmean(groups[1])
    # Of equal sizes, so that Welch's variance is the pooled one.
    error = math.sqrt(sum(variance(group) / len(group) for group in groups))
    width = error * student_quantile(1 / (sum(map(len, groups)) - 2))
    return f"**{100 * gain:+.1f}** ({100 * (gain - width):.1f} to {100 * (gain + width):.1f})"


def _share(result: Result, arm: str, other: str) -> float:
    """Return the core-minutes of an arm's generators as a share of another's."""
    minutes = [
        fmean(each.core_minutes or 0.0 for each in result.generators if each.arm == name)
        for name in (arm, other)
    ]
    return minutes[0] / minutes[1]


def _pair(result: Result, arm: str, against: str) -> ComparisonRecord:
    """Return a comparison by the study's first protocol."""
    comparisons = result.study.protocols[0].comparisons
    return next(each for each in comparisons if (each.arm, each.against) == (arm, against))


def _images(result: Result, arm: str) -> str:
    """Return how many images an arm's generators have seen."""
    return f"{next(each.images for each in result.generators if each.arm == arm):,}"


def _times(result: Result, arm: str, other: str) -> str:
    return f"{_share(result, arm, other):.1f}"


def _shown(each: ComparisonRecord) -> str:
    """Return whether a difference is shown, in words."""
    if not each.is_difference:
        return "not shown"
    return "shown, but not after the correction" if each.survives is False else "shown"


def _gain(each: ComparisonRecord) -> str:
    """Return a difference with its interval, bold where it leaves 0 out."""
    # Rounded before it is written, so that no -0.0 is.
    low, middle, high = (
        round(100 * (value or 0), 1) + 0.0 for value in (each.low, each.difference, each.high)
    )
    text = f"{middle:+.1f}"
    if each.is_difference:
        text = f"**{text}**"
    return f"{text} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Collect a study, or write the page from the records that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, metavar="STUDY", help="a finished study's folder")
    parser.add_argument("--name", help="of its record in docs/results")
    parser.add_argument("--generator", type=Path, metavar="RUN", help="a single pretraining run")
    parser.add_argument("--core_minutes", type=float, default=0.0, help="that it took")
    arguments = parser.parse_args()
    if arguments.collect is not None:
        print(collect(arguments.collect, arguments.name or arguments.collect.name))
        return
    if arguments.generator is not None:
        print(collect_generator(arguments.generator, arguments.core_minutes))
        return

    results = read_results()
    PAGE.write_text(write_page(results))
    draw(results).savefig(FIGURE, metadata={"Software": None})
    print(f"{PAGE} and {FIGURE}, from {len(results)} studies")


if __name__ == "__main__":
    main()
