"""The settings of launcher/study.py; no heavy import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colorgan.config.recipe import SCRATCH
from colorgan.study.protocols import RANDOM

DEFAULT_PROTOCOLS = (
    "paper-classification",
    "paper-segmentation",
    "voc2012-classification",
    "voc2012-segmentation",
)

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Positive = Annotated[float, Field(gt=0)]


class Roots(BaseModel):
    """Folders of the corpora."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voc: Path | None = Field(
        None, description="VOCdevkit; unset: the drawn one of the built-in sample"
    )
    coco: Path | None = Field(None, description="the folder of COCO, for the protocols on it")
    folder: Path | None = Field(
        None,
        description="photos in a folder per class that its classes.txt names, for folder-softmax",
    )
    pretrain: Path | None = Field(
        None, description="the corpus to pretrain on, for entries of `pack` without a root"
    )

    def of(self, corpus: str) -> Path | None:
        """Return the folder of a corpus that a protocol names; None if it is not given."""
        return {"voc": self.voc, "coco": self.coco, "folder": self.folder}[corpus]


class AssumedSpreads(BaseModel):
    """Standard deviations of a paired difference, in points, for the power of a study.

    The defaults are those of mAP in docs/transfer.md: twins of one recipe differed by as much as
    the gain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretraining: Annotated[float, Field(ge=0)] = Field(1.0, description="between pretraining seeds")
    seeds: Annotated[float, Field(ge=0)] = Field(0.7, description="between fine-tuning seeds")
    image: Annotated[float, Field(ge=0)] = Field(
        35.0, description="of one test image; over N images it falls to 1 / sqrt(N) of it"
    )


class StudySettings(BaseModel):
    """What to study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(
        Path("runs/study"),
        description="folder of the study: packed parts, runs, study.json, report",
    )
    roots: Roots = Roots()
    generators: dict[str, Path] = Field(
        {}, description="arms from existing generators: {NAME: FOLDER}"
    )
    pretrain: dict[str, dict[str, Any]] = Field(
        {},
        description="arms to pretrain first: {NAME: RECIPE}, a recipe of launcher/pretrain.py "
        "without `run`",
    )
    pack: dict[str, dict[str, Any]] = Field(
        {},
        description="sets to pack for pretraining: {NAME: RECIPE}, a recipe of launcher/pack.py "
        "without `out`; recipes in `pretrain` use them as data.train: [NAME], with `stratify` as "
        "[NAME/train]",
    )
    pretrain_seeds: tuple[Seed, ...] = Field(
        (),
        description="one pretraining run per seed, of every arm in `pretrain`; none: one run with "
        "the recipe's own seed",
    )
    scale: Positive = Field(
        1.0, description="factor on the image size of every recipe in `pretrain`, e.g. 4: 64 to 256"
    )
    protocols: tuple[str, ...] = Field(
        DEFAULT_PROTOCOLS,
        min_length=1,
        description="names, see docs/studies.md; each is judged by itself; NAME@10 trains on 10 % "
        "of the labels, NAME@all splits all photos of VOC by class, half of them to test",
    )
    seeds: tuple[Seed, ...] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="one fine-tuning run per seed, of every arm"
    )
    comparisons: tuple[tuple[str, str], ...] = Field(
        (),
        description="further pairs of arms to compare, e.g. [[gan, l1]]; every arm is always "
        "compared with scratch",
    )
    predictions: dict[str, str] = Field(
        {}, description="{PROTOCOL: TEXT}, written before the runs; the report shows them"
    )
    expected_core_minutes: dict[str, Positive] = Field(
        {},
        description="{COMMAND or PROTOCOL: MINUTES} of one step where the recipe was measured; "
        "--dry_run prints them",
    )
    assumed_spreads: AssumedSpreads = AssumedSpreads()
    search: tuple[Positive, ...] = Field(
        (),
        description="learning rates that every arm tries on a held-out part of its training "
        "images, where the protocol does not fix the schedule; one: all take it untried; none: "
        "the protocol's own",
    )
    epochs_times: dict[str, Positive] = Field(
        {},
        description="{PROTOCOL: FACTOR} on its epochs, for all arms alike (small corpora "
        "need more)",
    )
    finetune: dict[str, Any] = Field(
        {},
        description="{KEY: VALUE} of launcher/finetune.py for all runs, e.g. "
        "{batch.precision: bf16}",
    )
    jobs: Annotated[int, Field(gt=0)] = Field(
        1, description="steps side by side; each gets its share of the cores and of the GPUs"
    )
    launch: str = Field(
        "", description='command that starts training, e.g. "accelerate launch"; unset: one process'
    )
    list_steps: bool = Field(
        False, description="write the steps' recipes, print the steps as JSON, run nothing"
    )
    step: str = Field(
        "", description="run only this step (a name of --list_steps); its parents must be complete"
    )
    dry_run: bool = Field(
        False, description="check everything, print the steps and their estimated cost, run nothing"
    )

    @property
    def arm_names(self) -> list[str]:
        """Names of the pretrained arms."""
        trained = list(self.pretrain)
        if not trained and not self.generators:
            trained = ["pretrained"]
        return [*self.generators, *trained]

    @model_validator(mode="after")
    def _arms_have_one_meaning(self) -> StudySettings:
        names = [*self.generators, *self.pretrain]
        for name in names:
            # Names become folders, and these two are arms of every study.
            reserved = name in (SCRATCH, RANDOM)
            if reserved or names.count(name) > 1 or not name.replace("-", "").isalnum():
                raise ValueError(
                    f"{name!r} cannot name an arm: use letters, digits and -, each name once, "
                    "not scratch or random"
                )

        # The same seed twice is the same run: the interval would be too narrow. The same protocol
        # twice would count as two comparisons.
        for key in ("seeds", "pretrain_seeds", "protocols", "search"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} {', '.join(map(str, values))}: each once")

        known = {SCRATCH, *self.arm_names}
        for pair in self.comparisons:
            # Found now: comparisons are made after days of runs.
            if pair[0] == pair[1] or not set(pair) <= known:
                raise ValueError(
                    f"comparisons: {list(pair)} is not a pair of arms; there are "
                    f"{', '.join(sorted(known))}"
                )
        return self
