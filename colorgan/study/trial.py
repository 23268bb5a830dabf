"""One protocol of a study as steps: packing, search of learning rates, fine-tuning or probes.

<out>/shards/...                          packed parts, shared by the protocols
<out>/<protocol>/<start>-<seed>/          fine-tuning runs and probes; evaluation/ in each run
<out>/<protocol>/search/<start>-<rate>/   the search, on a held-out part of the training images
<out>/<protocol>/search/rates.json        what it scored
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from colorgan.config.recipe import SCRATCH, StageRecipe
from colorgan.errors import UsageError
from colorgan.evaluation.record import EVALUATION, SCORES
from colorgan.files import mapping, number, read_json
from colorgan.probes.record import PROBE
from colorgan.study.arms import Arm, Start
from colorgan.study.comparison import RunKey
from colorgan.study.protocols import FROZEN, RANDOM, PackedPart, Protocol, Split
from colorgan.study.steps import IN_PROCESS, Step

HELD_OUT = "80,20"  # of the training part, for a search where the protocol holds nothing out itself
RATES = "rates.json"
STAGE_KEYS = ("epochs", "learning_rate", "features", "schedule")  # in every recipe of a stage

Folders = Mapping[str, Mapping[RunKey, Path]]  # arm -> run -> evaluation
Scores = dict[str, dict[float, float | None]]  # arm -> learning rate -> score; None: it diverged


@dataclass(frozen=True)
class Trial:
    """One protocol on one way of splitting its corpus, for every arm and seed alike.

    Attributes:
        root: the corpus on disk.
        out: the study's folder.
        network: keys of a recipe's `network`; from scratch it is that of the generators.
        settings: dotted keys of the fine-tuning recipe that override the protocol's.
        epochs_times: factor on the protocol's epochs, in every arm.
        rates: learning rates to search; one: all arms take it untried; none: the protocol's own.
        parents: by start, the step that makes its weights; of the corpus under its name.
    """

    protocol: Protocol
    split: Split
    root: Path
    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    network: Mapping[str, Any]
    settings: Mapping[str, Any]
    epochs_times: float = 1.0
    rates: tuple[float, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)

    def steps(self) -> Iterator[Step]:
        """Yield all steps of the protocol, parents first."""
        # Yielded for each protocol anew; the plan keeps the first of a name.
        yield self.pack(self.split.train)
        yield self.pack(self.split.test)

        if self.protocol.task in FROZEN:
            yield from self.probes()
            return

        if self.is_searched:
            for part in self.search_parts():
                yield self.pack(part)
            yield from self.search()
            yield self.rates_step()
        yield from self.runs().values()

    @property
    def is_searched(self) -> bool:
        """Whether several learning rates are tried."""
        return self.protocol.searchable and len(self.rates) > 1

    # --- Packing

    def image_of(self, part: PackedPart) -> str:
        """Return the image policy: the smallest random crop still has the network's size."""
        if not part.image.startswith("squash:"):
            return part.image

        # The user's settings override the protocol's, as in the runs.
        keys = {**self.protocol.settings, **self.settings}
        smallest = float(keys.get("data.random_crop_min_area", 1.0))
        side = int(self.network["image_size"])
        if smallest < 1.0:
            # Rounded up to 8: packed sizes stay multiples of a JPEG block.
            side = math.ceil(side / math.sqrt(smallest) / 8) * 8
        return f"squash:{side}"

    def folder_of(self, part: PackedPart) -> Path:
        """Return the packed folder of a part; parts of a stratified split share their parent."""
        words = (
            self.protocol.corpus,
            part.split,
            self.image_of(part),
            part.stratify,
        )
        name = "-".join(word.replace(":", "").replace(",", "-") for word in words if word)
        return self.out / "shards" / name / part.fold

    def pack(self, part: PackedPart) -> Step:
        """Return the step that packs a part and all others of its stratified split."""
        folder = self.folder_of(part)
        out = folder.parent if part.fold else folder
        recipe = {
            "corpus": self.protocol.corpus,
            "root": str(self.root),
            **part.pack_arguments,
        }
        recipe |= {"image": self.image_of(part), "out": str(out)}
        parents = (
            (self.parents[self.protocol.corpus],) if self.protocol.corpus in self.parents else ()
        )
        return Step(
            f"pack {out.name}",
            "pack",
            out / part.last_fold / "manifest.json",
            parents,
            lambda: recipe,
        )

    # --- Search

    def search_parts(self) -> tuple[PackedPart, PackedPart]:
        """Return what a search trains on and what it is judged by; the test part is in neither."""
        if self.split.selection is not None:
            # The protocol's own held-out part, where it has one.
            return self.split.train, self.split.selection

        stratify = HELD_OUT
        if self.split.train.stratify:
            # A share of the labels: a fifth of that very share judges, the rest of the corpus
            # stays out.
            share = int(self.split.train.stratify.split(",")[0])
            stratify = f"{0.8 * share:g}+{0.2 * share:g},{100 - share}"
        train = replace(self.split.train, stratify=stratify, fold="train")
        return train, replace(train, fold="val")

    def search(self) -> list[Step]:
        """Return a run per arm and learning rate, on the parts of a search, with the first seed."""
        # One seed and one start per arm: a search of all of them costs as much as the study.
        parts = self.search_parts()
        steps = []
        for arm in self.arms:
            start = arm.starts[0]
            for rate in self.rates:
                folder = self.search_folder / f"{start.name}-{rate:g}"
                step = self._run(
                    arm,
                    start,
                    self.seeds[0],
                    parts,
                    folder,
                    rate,
                )
                steps.append(replace(step, may_diverge=True))
        return steps

    @property
    def search_folder(self) -> Path:
        """The folder of the search."""
        return self.out / self.protocol.name / "search"

    def rates_step(self) -> Step:
        """Return the step that collects what the search scored."""
        return Step(
            f"{self.protocol.name}/rates",
            IN_PROCESS,
            self.search_folder / RATES,
            tuple(step.name for step in self.search()),
            action=self._write_rates,
            always=True,
        )

    def _write_rates(self) -> None:
        found: dict[str, dict[str, float | None]] = {}
        for arm in self.arms:
            folders = {
                rate: self.search_folder / f"{arm.starts[0].name}-{rate:g}" for rate in self.rates
            }
            found[arm.name] = {
                repr(rate): _search_score(folder / EVALUATION / SCORES, self.protocol.metric)
                for rate, folder in folders.items()
            }
        # Tried before it is written: an arm without any rate ends the study here.
        best_rates({arm: {float(k): v for k, v in scores.items()} for arm, scores in found.items()})
        (self.search_folder / RATES).write_text(json.dumps(found, indent=1) + "\n")

    def search_scores(self) -> Scores:
        """Return what the search scored; a single rate is taken untried; {} without a search.

        Raises:
            UsageError: the search is not complete.
        """
        if not self.protocol.searchable or not self.rates:
            return {}
        if not self.is_searched:
            return {arm.name: {self.rates[0]: None} for arm in self.arms}

        path = self.search_folder / RATES
        text = read_json(path)
        scores: Scores = {}
        for arm in self.arms:
            known = mapping(text.get(arm.name))
            if any(repr(rate) not in known for rate in self.rates):
                raise UsageError(f"{path}: the search of learning rates is not complete")
            scores[arm.name] = {rate: number(known[repr(rate)]) for rate in self.rates}
        return scores

    # --- Runs and probes

    def runs(self) -> dict[tuple[str, int], Step]:
        """Return the runs whose scores count, by start and seed."""
        parts = (self.split.train, self.split.test)
        return {
            (start.name, seed): self._run(
                arm,
                start,
                seed,
                parts,
                self.folder(start, seed),
                None,
            )
            for seed in self.seeds
            for arm in self.arms
            for start in arm.starts
        }

    def folder(self, start: Start, seed: int) -> Path:
        """Return the folder of a run or a probe."""
        return self.out / self.protocol.name / f"{start.name}-{seed}"

    def stages_of(self, arm: Arm, learning_rate: float | None) -> list[dict[str, Any]]:
        """Return an arm's stages; a searched rate replaces that of the full ones."""
        stages = self.protocol.stages["pretrained" if arm.pretrained else "scratch"]
        plain = [_stage_fields(stage) for stage in stages]
        for stage in plain:
            # For all arms alike, so that they stay comparable.
            stage["epochs"] *= self.epochs_times
            if learning_rate is not None and stage["features"] == "train":
                stage["learning_rate"] = learning_rate
        return plain

    @cached_property
    def compared_arms(self) -> tuple[Arm, ...]:
        """The arms of the table, the one without pretraining first.

        Scratch has no features to judge; random weights stand for it, as many as there are
        pretraining seeds, so that the interval covers other random weights too.
        """
        if self.protocol.task not in FROZEN:
            return self.arms

        pretrained = [arm for arm in self.arms if arm.pretrained]
        most = max(pretrained, key=lambda arm: len(arm.starts))
        drawn = [start.seed for start in most.starts] if len(most.starts) > 1 else self.seeds
        random = Arm(RANDOM, tuple(Start(RANDOM, seed=seed) for seed in drawn))
        return (random, *pretrained)

    def probes(self) -> list[Step]:
        """Return the probes: each generator with the first seed, random weights with each seed."""
        random, *pretrained = self.compared_arms
        starts = [start for arm in pretrained for start in arm.starts]
        return [self._probe(start, starts[0]) for start in (*starts, *random.starts)]

    def evaluations(self) -> Folders:
        """Return the evaluation folder of every run and probe whose score counts."""
        frozen = self.protocol.task in FROZEN
        seeds = self.seeds[:1] if frozen else self.seeds
        folders: dict[str, dict[RunKey, Path]] = {}
        for arm in self.compared_arms:
            folders[arm.name] = {}
            for start in arm.starts:
                for seed in seeds:
                    run = self.probe_folder(start) if frozen else self.folder(start, seed)
                    folders[arm.name][start.seed, seed] = run / EVALUATION
        return folders

    def probe_folder(self, start: Start) -> Path:
        """Return the folder of a probe; the seed draws random weights, and few-label images."""
        return self.folder(start, self._probe_seed(start))

    def _probe_seed(self, start: Start) -> int:
        return start.seed if start.generator is None else self.seeds[0]

    def _run(
        self,
        arm: Arm,
        start: Start,
        seed: int,
        parts: tuple[PackedPart, PackedPart],
        folder: Path,
        rate: float | None,
    ) -> Step:
        """Return a fine-tuning run; `rate` None: the one that the search found, known later."""

        def recipe() -> dict[str, Any]:
            learning_rate = rate
            if learning_rate is None:
                learning_rate = best_rates(self.search_scores()).get(arm.name)
            keys = {
                "task": self.protocol.task,
                "init": SCRATCH if start.generator is None else str(start.generator),
                "seed": seed,
                "run": str(folder),
                "data.train": [str(self.folder_of(parts[0]))],
                "data.val": [str(self.folder_of(parts[1]))],
                "stages": self.stages_of(arm, learning_rate),
                # Scored once, at the end: scores on the way would be a choice by the test part.
                "output.validate_every_images": 0,
                "output.save_every_images": 0,
                **self.protocol.settings,
                **self.settings,
            }
            # A generator brings its network; from scratch it has to be said.
            if start.generator is None:
                keys |= {f"network.{key}": value for key, value in self.network.items()}
            return keys

        parents = [self.pack(part).name for part in parts]
        if rate is None and self.is_searched:
            # The rate is read when the step begins.
            parents.append(self.rates_step().name)
        return Step(
            str(folder.relative_to(self.out)),
            "finetune",
            folder / EVALUATION / SCORES,
            self._with_weights(parents, start),
            recipe,
            start.inputs,
        )

    def _probe(self, start: Start, like: Start) -> Step:
        folder = self.probe_folder(start)
        recipe = {
            "protocol": self.protocol.task,
            "model": RANDOM if start.generator is None else str(start.generator),
            "seed": self._probe_seed(start),
            "data.train": [str(self.folder_of(self.split.train))],
            "data.test": [str(self.folder_of(self.split.test))],
            "out": str(folder),
            **({"like": str(like.generator)} if start.generator is None else {}),
        }
        parents = [self.pack(part).name for part in (self.split.train, self.split.test)]
        weights = like if start.generator is None else start
        return Step(
            str(folder.relative_to(self.out)),
            "probe",
            folder / PROBE,
            self._with_weights(parents, weights),
            lambda: recipe,
            start.inputs,
        )

    def _with_weights(self, parents: list[str], start: Start) -> tuple[str, ...]:
        """Return the parents and the step that makes the start's weights, each once."""
        if start.name in self.parents:
            parents = [*parents, self.parents[start.name]]
        return tuple(dict.fromkeys(parents))


def _stage_fields(stage: StageRecipe) -> dict[str, Any]:
    """Return a stage's settings; keys that came with later versions only if they are set.

    A complete step is known by its recipe: studies of older versions would run again.
    """
    fields = {}
    for name, value in stage.model_dump().items():
        default = StageRecipe.model_fields[name].default
        if name in STAGE_KEYS or value != default:
            fields[name] = value
    return fields


def _search_score(path: Path, metric: str) -> float | None:
    """Return what a run of the search scored; None where it diverged.

    The held-out part is packed like the training part, so own-size scores are searched at the
    network's size.
    """
    searched = {"mIoU_own_size": "mIoU"}.get(metric, metric)
    return read_scores(path).get(searched) if path.exists() else None


def best_rates(scores: Mapping[str, Mapping[float, float | None]]) -> dict[str, float]:
    """Return each arm's best learning rate: of equals the lowest, a single one untried.

    Raises:
        UsageError: none of several rates of an arm has a score.
    """
    best = {}
    for arm, by_rate in scores.items():
        if len(by_rate) == 1:
            best[arm] = next(iter(by_rate))
            continue

        known = {rate: score for rate, score in sorted(by_rate.items()) if score is not None}
        if not known:
            raise UsageError(
                f"search: {arm} diverged at every rate ({', '.join(map(str, by_rate))}): "
                "add lower ones"
            )
        # Sorted before, so that of equals the lowest comes first.
        best[arm] = max(known, key=lambda rate: known[rate])
    return best


def read_scores(path: Path) -> dict[str, float]:
    """Return the scores in a step's scores.json.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        scores = json.loads(path.read_text())["scores"]
        return {name: value for name, value in scores.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(
            f"{path}: no scores can be read; remove {path.parents[1]} and start the study again"
        ) from None
