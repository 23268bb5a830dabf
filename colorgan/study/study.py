"""launcher/study.py's work: steps in order."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from colorgan.config.settings import leaves
from colorgan.errors import UsageError
from colorgan.models.model_folder import read_config
from colorgan.probes.svm import check_sklearn
from colorgan.study.protocols import Protocol, find_protocol
from colorgan.study.runner import Runner, StepError
from colorgan.study.trials import (
    FROZEN,
    PROBE,
    RANDOM,
    SCRATCH,
    Arm,
    Step,
    Trial,
    best_rates,
    search_scores,
    table_row,
    write_study,
)

PROTOCOLS = (
    "paper-classification",
    "paper-segmentation",
    "voc2012-classification",
    "voc2012-segmentation",
)


EXIT_USAGE = 2


NO_SPLIT = "no split"  # what the adapters of corpora say


SHARED = (
    "image_size",
    "ab_scale",
    "norm",
    "bias_before_norm",
    "dropout",
)  # also by an encoder from elsewhere


TAKEN = {"task", "init", "seed", "run", "stages", "network", "dry_run"}


class Roots(BaseModel):
    """Where the corpora lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voc: Path | None = Field(
        None, description="VOCdevkit; unset: the drawn one of the built-in sample"
    )
    coco: Path | None = Field(None, description="the folder of COCO, for the protocols on it")


class StudySettings(BaseModel):
    """What to study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(
        Path("runs/study"),
        description="folder of the study: packed parts, runs, study.json, report",
    )
    roots: Roots = Roots()
    generators: dict[str, Path] = Field(
        {}, description="arms from generators that are there: {NAME: FOLDER}"
    )
    pretrain: dict[str, dict[str, Any]] = Field(
        {},
        description="arms to pretrain first: {NAME: RECIPE}, a recipe of launcher/pretrain.py without `run`",
    )
    protocols: tuple[str, ...] = Field(
        PROTOCOLS, min_length=1, description="names, see README; each stands alone"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="one fine-tuning run for each, of every arm"
    )
    search: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="learning rates that every arm tries on a held-out part of its training pictures, where the "
        "protocol does not set the schedule; one: all take it untried; none: the protocol's own",
    )
    epochs_times: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="{PROTOCOL: FACTOR}: so many times its epochs, for both arms alike (small corpora need more)",
    )
    finetune: dict[str, Any] = Field(
        {},
        description="{KEY: VALUE} of launcher/finetune.py for all runs, e.g. {batch.precision: bf16}",
    )
    jobs: Annotated[int, Field(gt=0)] = Field(
        1, description="runs side by side; each gets its share of the cores and of the GPUs"
    )
    launch: str = Field(
        "", description='how training starts, e.g. "accelerate launch"; unset: one process'
    )

    @model_validator(mode="after")
    def _arms_have_one_meaning(self) -> StudySettings:
        names = [*self.generators, *self.pretrain]
        for name in names:
            if (
                name in (SCRATCH, RANDOM)
                or names.count(name) > 1
                or not name.replace("-", "").isalnum()
            ):
                raise ValueError(
                    f"{name!r} cannot name an arm: letters, digits and -, once, not scratch or random"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: each once")
        return self


def check(settings: StudySettings) -> None:
    """Find the mistakes that can be found before hours of work.

    Raises:
        UsageError, ModelFolderError: one of them, in a sentence.
    """
    for name in settings.epochs_times:
        find_protocol(name)
    for protocol in map(find_protocol, settings.protocols):
        if protocol.corpus == "coco" and settings.roots.coco is None:
            raise UsageError(f"{protocol.name} needs --roots.coco, the folder of that corpus")
        if protocol.task in ("linear", "lowshot"):
            check_sklearn()
    for key, root in (("voc", settings.roots.voc), ("coco", settings.roots.coco)):
        if root is not None and not root.is_dir():
            raise UsageError(f"--roots.{key} {root} is no folder")
    for name, folder in settings.generators.items():
        if (kind := read_config(folder).kind) not in ("generator", "encoder"):
            raise UsageError(
                f"--generators {name}: {folder} holds a {kind}; give what consolidate.py or import_encoder.py wrote"
            )
    if taken := sorted({str(key).split(".")[0] for key in settings.finetune} & TAKEN):
        raise UsageError(
            f"--finetune {taken[0]}: the study itself sets it for each arm, seed and protocol"
        )
    if settings.launch and shutil.which(shlex.split(settings.launch)[0]) is None:
        raise UsageError(f"--launch {settings.launch!r}: there is no such program")


def run_study(settings: StudySettings, runner: Runner) -> None:
    """Every step in its order; what is done already costs nothing."""
    roots = roots_of(settings, runner)
    arms = (Arm(SCRATCH, None), *pretrained_arms(settings, runner))
    network = shared_network(arms)
    rows = []
    for protocol in map(find_protocol, settings.protocols):
        rows += run_protocol(settings, runner, protocol, roots, arms, network)
    write_study(settings.out, rows)
    for row in rows:
        print(f"{row['title']}: {row['metric_title']}, {row['data']['test']} pictures")
        for one in row["comparisons"]:
            print(f"  {one['arm']} and {one['against']}: {one['verdict']}")
    page = settings.out / "report" / "report.html"
    page.unlink(missing_ok=True)
    folders = report_folders(settings, [settings.out] if rows else [])
    runner.run([Step("report", "report", {"out": str(page.parent), "runs": folders}, page)])
    print(f"Next: open {page} in a browser")


def roots_of(settings: StudySettings, runner: Runner) -> dict[str, Path | None]:
    """Return the folder of each corpus; VOC's is drawn where none is given."""
    if settings.roots.voc is not None:
        return {"voc": settings.roots.voc, "coco": settings.roots.coco}
    print("No --roots.voc: studying the built-in sample (drawn shapes, no benchmark).", flush=True)
    runner.run([sample_step(settings.out, "voc-train", 64)])
    return {"voc": settings.out / "raw" / "VOCdevkit", "coco": settings.roots.coco}


def sample_step(out: Path, split: str, image_size: int) -> Step:
    """Return the step that draws the built-in sample and packs a split of it."""
    folder = out / "shards" / f"sample-{split}-{image_size}"
    recipe = {
        "corpus": "sample",
        "root": str(out / "raw"),
        "split": split,
        "image": f"squash:{image_size}",
    }
    return Step(
        f"pack {folder.name}", "pack", {**recipe, "out": str(folder)}, folder / "manifest.json"
    )


def pretrained_arms(settings: StudySettings, runner: Runner) -> list[Arm]:
    """Pretrain and consolidate what is to be; return the arms with a generator."""
    recipes: dict[str, dict[str, Any]] = settings.pretrain
    if not recipes and not settings.generators:
        recipes = {
            "pretrained": yaml.safe_load((runner.launcher / "configs" / "sample.yaml").read_text())
        }
    arms = [Arm(name, folder) for name, folder in settings.generators.items()]
    for name, recipe in recipes.items():
        run = settings.out / "pretrain" / name
        generator = run / "generator"
        told = {**with_data(settings.out, recipe, runner), "run": str(run)}
        runner.run([Step(f"pretrain {name}", "pretrain", told, run / "log.jsonl")])
        words = {"run": str(run), "out": str(generator)}
        runner.run([Step(f"consolidate {name}", "consolidate", words, generator / "config.json")])
        arms.append(Arm(name, generator))
    return sorted(arms, key=from_elsewhere)  # generators first


def from_elsewhere(arm: Arm) -> bool:
    """Whether the arm starts from an imported encoder, and is no generator."""
    return arm.generator is not None and read_config(arm.generator).kind == "encoder"


def with_data(out: Path, recipe: Mapping[str, Any], runner: Runner) -> dict[str, Any]:
    """Return a recipe of pretraining that names its data: the built-in sample where it names none."""
    data = recipe.get("data") or {}
    if "data.train" in recipe or "train" in data:
        return dict(recipe)
    size = int(
        (recipe.get("network") or {}).get("image_size", recipe.get("network.image_size", 256))
    )
    steps = {split: sample_step(out, split, size) for split in ("train", "val")}
    for step in steps.values():  # one after the other: the first draws the pictures
        runner.run([step])
    return {
        **recipe,
        "data": {**data, **{split: [step.recipe["out"]] for split, step in steps.items()}},
    }


def shared_network(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the architecture of the generators as keys of a recipe's `network`; from scratch it is the same.

    Encoders from elsewhere are networks of their own: of them the input and the decoder's settings are compared.
    """
    networks = {}
    for arm in arms:
        if arm.generator is not None:
            config = read_config(arm.generator)
            plain = {**config.architecture.model_dump(), "ab_scale": config.ab_scale}
            keys = SHARED if config.kind == "encoder" else (*SHARED, "width")
            networks[arm.name] = {key: plain[key] for key in keys}
    (first, network), *others = networks.items()
    if "width" not in network:
        raise UsageError(
            f"no arm is a generator: {first} is an encoder from elsewhere, and scratch is the U-Net"
        )
    for name, other in others:
        for key in other:
            if other[key] != network[key]:
                raise UsageError(
                    f"{first} has {key} {network[key]}, {name} has {other[key]}: arms are compared on one network; "
                    "make a study of its own for the other"
                )
    return network


def run_protocol(
    settings: StudySettings,
    runner: Runner,
    protocol: Protocol,
    roots: Mapping[str, Path | None],
    arms: tuple[Arm, ...],
    network: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Pack, search, train and score by one protocol; return its row of the table (none for frozen features)."""
    root = roots[protocol.corpus]
    if root is None:
        raise UsageError(
            f"{protocol.name} needs --roots.{protocol.corpus}, the folder of that corpus"
        )
    times = settings.epochs_times.get(protocol.name, 1.0)
    words = (
        root,
        settings.out,
        arms,
        settings.seeds,
        network,
        dict(leaves(settings.finetune)),
        times,
    )
    trial = packed_trial(runner, [Trial(protocol, data, *words) for data in protocol.data])
    if protocol.task in FROZEN:
        runner.run(trial.probes())
        return []
    found: dict[str, dict[float, float | None]] = {}
    if settings.search and protocol.searchable:
        found = search(trial, settings.search, runner)
    runner.run(list(trial.runs(best_rates(found)).values()))
    return [table_row(trial, found)]


def search(
    trial: Trial, rates: Sequence[float], runner: Runner
) -> dict[str, dict[float, float | None]]:
    """Try the learning rates with every arm and return what they scored; a single one is taken untried."""
    if len(rates) == 1:
        return {arm.name: {rates[0]: None} for arm in trial.arms}
    for part in trial.search_parts():
        runner.run([trial.pack(part)])
    steps = trial.search(rates)
    runner.run(list(steps.values()))
    return search_scores(trial, steps)


def packed_trial(runner: Runner, trials: Sequence[Trial]) -> Trial:
    """Pack the parts of the first way of splitting the corpus that is on disk, and return its trial."""
    for trial in trials:
        try:
            for part in (trial.data.train, trial.data.test):
                runner.run([trial.pack(part)])
            if trial is trials[-1] or has_classes(trial.folder_of(trial.data.test)):
                return trial
        except StepError as error:
            if error.status != EXIT_USAGE or NO_SPLIT not in str(error) or trial is trials[-1]:
                raise
        print(f"{trial.data.title}: not on disk with its labels", flush=True)
    raise AssertionError("a protocol has data")


def has_classes(packed: Path) -> bool:
    """Whether a packed folder has labels."""
    return bool(json.loads((packed / "manifest.json").read_text())["classes"])


def report_folders(settings: StudySettings, studies: Sequence[Path]) -> list[str]:
    """Return what its report shows: the study with all its runs, and the probes of frozen features."""
    arms = [*settings.generators, *(settings.pretrain or ["pretrained"]), RANDOM]
    runs = [
        settings.out / name / f"{arm}-{seed}"
        for name in settings.protocols
        for arm in arms
        for seed in settings.seeds
    ]
    return [str(folder) for folder in (*studies, *(run for run in runs if (run / PROBE).is_file()))]
