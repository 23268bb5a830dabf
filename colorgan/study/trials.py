"""A study: the same protocols for every arm and seed, and the table that says whether pretraining helped.

What is run stands here as data (a `Step` is one command line of another verb and the file that tells that it is done);
launcher/study.py runs it. An arm is what a network starts from: `scratch`, or a pretrained generator.

    <out>/shards/...                          packed parts, shared by the protocols
    <out>/pretrain/<arm>/                     run folder and generator/
    <out>/<protocol>/<arm>-<seed>/            fine-tuning runs; evaluation/ in each
    <out>/<protocol>/search/<arm>-<rate>/     the search, on a held-out part of the training pictures
    <out>/study.json                          the table (report.py shows it)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from colorgan.errors import UsageError
from colorgan.evaluation.record import EVALUATION, SCORES
from colorgan.files import replacing
from colorgan.models.model_folder import weights_digest
from colorgan.study.comparison import compare, read_arm
from colorgan.study.protocols import METRIC_TITLES, Data, Part, Protocol

SCRATCH, RANDOM = "scratch", "random"
FROZEN = {"linear", "lowshot", "knn"}
STUDY, PROBE = "study.json", "probe.json"
HELD_OUT = "80,20"  # of the training part, for a search where the protocol holds nothing out itself


@dataclass(frozen=True)
class Step:
    """One call of a verb.

    Attributes:
        name: what it is, for people; unique in a study.
        verb: the script in launcher/, without .py.
        recipe: what it is told: keys of the verb's schema, dotted or nested.
        done: the file that is there when it has ended well.
        inputs: digests of files that it reads, by name: with another it is not done.
        may_diverge: a loss that is no number is no failure: a search tries rates that are too high.
    """

    name: str
    verb: str
    recipe: Mapping[str, Any]
    done: Path
    inputs: Mapping[str, str] = field(default_factory=dict)
    may_diverge: bool = False


@dataclass(frozen=True)
class Arm:
    """What networks start from: `generator` is None for scratch (fine-tuning) and random (frozen features)."""

    name: str
    generator: Path | None

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digest of the weights, for the steps that start from them."""
        return (
            {"weights of init": weights_digest(self.generator)}
            if self.generator is not None
            else {}
        )


@dataclass(frozen=True)
class Trial:
    """One protocol on one way of splitting its corpus, for every arm and seed alike.

    Attributes:
        root: the corpus on disk.
        out: the study's folder.
        network: the generators' architecture as keys of a recipe's `network`; from scratch it is the same.
        settings: keys of the fine-tuning recipe that go before those of the protocol.
        epochs_times: so many times the protocol's epochs, in every arm.
    """

    protocol: Protocol
    data: Data
    root: Path
    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    network: Mapping[str, Any]
    settings: Mapping[str, Any]
    epochs_times: float = 1.0

    def image_of(self, part: Part) -> str:
        """Return the image policy: squashed no smaller than lets the smallest crop keep the network's size."""
        if not part.image.startswith("squash:"):
            return part.image
        smallest = float(
            {**self.protocol.settings, **self.settings}.get("data.random_crop_min_area", 1.0)
        )
        side = int(self.network["image_size"])
        return (
            f"squash:{side if smallest == 1.0 else math.ceil(side / math.sqrt(smallest) / 8) * 8}"
        )

    def folder_of(self, part: Part) -> Path:
        """Return where a part lies packed; those of a stratified split lie in one folder."""
        words = [self.protocol.corpus, part.split, part.image, part.stratify]
        words[2] = self.image_of(part)
        name = "-".join(word.replace(":", "").replace(",", "-") for word in words if word)
        return self.out / "shards" / name / part.fold if part.fold else self.out / "shards" / name

    def pack(self, part: Part) -> Step:
        """Return the step that packs a part, and with it those it shares a stratified split with."""
        folder = self.folder_of(part)
        out = folder.parent if part.fold else folder
        recipe = {"corpus": self.protocol.corpus, "root": str(self.root), **part.pack_arguments}
        recipe |= {"image": self.image_of(part), "out": str(out)}
        return Step(f"pack {out.name}", "pack", recipe, folder / "manifest.json")

    def search_parts(self) -> tuple[Part, Part]:
        """Return what a search trains on and what it is judged by; the test part is in neither."""
        if self.data.selection is not None:
            return self.data.train, self.data.selection
        train, judge = (
            replace(self.data.train, stratify=HELD_OUT, fold=fold) for fold in ("train", "val")
        )
        return train, judge

    def search(self, rates: Sequence[float]) -> dict[tuple[str, float], Step]:
        """Return the runs of every arm with every learning rate, on the parts of a search and the first seed."""
        name = f"{self.protocol.name}/search"
        steps = {
            (arm.name, rate): self._run(
                arm, self.seeds[0], self.search_parts(), rate, f"{name}/{arm.name}-{rate:g}"
            )
            for arm in self.arms
            for rate in rates
        }
        return {key: replace(step, may_diverge=True) for key, step in steps.items()}

    def runs(self, rates: Mapping[str, float]) -> dict[tuple[str, int], Step]:
        """Return the runs whose scores count, by arm and seed.

        Args:
            rates: the learning rate that each arm's search has found; empty where nothing was searched.
        """
        parts = (self.data.train, self.data.test)
        return {
            (arm.name, seed): self._run(
                arm, seed, parts, rates.get(arm.name), f"{self.protocol.name}/{arm.name}-{seed}"
            )
            for seed in self.seeds
            for arm in self.arms
        }

    def stages_of(self, arm: Arm, learning_rate: float | None) -> list[dict[str, Any]]:
        """Return the stages of an arm; a searched rate takes the place of those at which all weights learn."""
        stages = self.protocol.stages["scratch" if arm.generator is None else "pretrained"]
        plain = [stage.model_dump() for stage in stages]
        for stage in plain:
            stage["epochs"] *= self.epochs_times
            if learning_rate is not None and stage["features"] == "train":
                stage["learning_rate"] = learning_rate
        return plain

    def probes(self) -> list[Step]:
        """Return the steps of a protocol on frozen features: each generator once, random weights with each seed."""
        like = next(str(arm.generator) for arm in self.arms if arm.generator is not None)
        pretrained = [(arm, self.seeds[0]) for arm in self.arms if arm.generator is not None]
        return [
            self._probe(arm, seed, like)
            for arm, seed in [*pretrained, *((Arm(RANDOM, None), seed) for seed in self.seeds)]
        ]

    def _run(
        self, arm: Arm, seed: int, parts: tuple[Part, Part], rate: float | None, name: str
    ) -> Step:
        run = self.out / name
        recipe = {
            "task": self.protocol.task,
            "init": SCRATCH if arm.generator is None else str(arm.generator),
            "seed": seed,
            "run": str(run),
            "data.train": [str(self.folder_of(parts[0]))],
            "data.val": [str(self.folder_of(parts[1]))],
            "stages": self.stages_of(arm, rate),
            "output.validate_every_images": 0,
            "output.save_every_images": 0,
            **self.protocol.settings,
            **self.settings,
        }
        if arm.generator is None:
            recipe |= {f"network.{key}": value for key, value in self.network.items()}
        return Step(name, "finetune", recipe, run / EVALUATION / SCORES, arm.inputs)

    def _probe(self, arm: Arm, seed: int, like: str) -> Step:
        out = self.out / self.protocol.name / f"{arm.name}-{seed}"
        recipe = {
            "protocol": self.protocol.task,
            "model": RANDOM if arm.generator is None else str(arm.generator),
            "seed": seed,
            "data.train": [str(self.folder_of(self.data.train))],
            "data.test": [str(self.folder_of(self.data.test))],
            "out": str(out),
            **({"like": like} if arm.generator is None else {}),
        }
        return Step(
            f"{self.protocol.name}/{arm.name}-{seed}", "probe", recipe, out / PROBE, arm.inputs
        )


def search_scores(
    trial: Trial, steps: Mapping[tuple[str, float], Step]
) -> dict[str, dict[float, float | None]]:
    """Return what each arm's search has scored by the protocol's headline, by learning rate; None where it diverged.

    The held-out part is packed like the training part: what counts at own size is searched at the network's.
    """
    metric = {"mIoU_own_size": "mIoU"}.get(trial.protocol.metric, trial.protocol.metric)
    found: dict[str, dict[float, float | None]] = {}
    for (arm, rate), step in steps.items():
        score = read_scores(step.done).get(metric) if step.done.exists() else None
        found.setdefault(arm, {})[rate] = score
    return found


def best_rates(found: Mapping[str, Mapping[float, float | None]]) -> dict[str, float]:
    """Return the learning rate of each arm that scored best; of equals the lowest, of a single one that.

    Raises:
        UsageError: none of several rates of an arm has a score.
    """
    best = {}
    for arm, scores in found.items():
        if len(scores) == 1:
            best[arm] = next(iter(scores))
            continue
        known = {rate: score for rate, score in sorted(scores.items()) if score is not None}
        if not known:
            raise UsageError(
                f"search: {arm} diverged at every rate ({', '.join(map(str, scores))}): add lower ones"
            )
        best[arm] = max(known, key=lambda rate: known[rate])
    return best


def read_scores(done: Path) -> dict[str, float]:
    """Return the scores that a step has left.

    Raises:
        UsageError: they are not there, or damaged.
    """
    try:
        return {
            name: value
            for name, value in json.loads(done.read_text())["scores"].items()
            if value is not None
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(
            f"{done}: no scores to read; remove {done.parents[1]} and start the study again"
        ) from None


def table_row(trial: Trial, found: Mapping[str, Mapping[float, float | None]]) -> dict[str, Any]:
    """Return one protocol's part of study.json: every seed's score, and each pretrained arm against scratch.

    Args:
        found: what the search has scored, by arm and learning rate; empty where nothing was searched.
    """
    protocol, best = trial.protocol, best_rates(found)
    folders = {
        arm.name: {
            seed: trial.out / protocol.name / f"{arm.name}-{seed}" / EVALUATION
            for seed in trial.seeds
        }
        for arm in trial.arms
    }
    test = read_scores(folders[SCRATCH][trial.seeds[0]] / SCORES)
    train = json.loads((trial.folder_of(trial.data.train) / "manifest.json").read_text())
    values, comparisons = _scored(trial, folders, protocol.metric)
    return {
        "name": protocol.name,
        "title": protocol.title,
        "task": protocol.task,
        "metric": protocol.metric,
        "metric_title": METRIC_TITLES[protocol.metric],
        "source": protocol.source,
        "input": protocol.input,
        "head": protocol.head,
        "data": {
            "title": trial.data.title,
            "train": sum(shard["samples"] for shard in train["shards"]),
            "test": int(test["images"]),
            "classes": int(test["classes"]),
        },
        "seeds": list(trial.seeds),
        "arms": [
            {
                "name": arm.name,
                "settings": {
                    "stages": trial.stages_of(arm, best.get(arm.name)),
                    "search": {
                        f"{rate:g}": score for rate, score in found.get(arm.name, {}).items()
                    },
                },
                "values": values[arm.name],
                "runs": [str(folders[arm.name][seed].parent) for seed in trial.seeds],
            }
            for arm in trial.arms
        ],
        "comparisons": comparisons,
        "further": [_further(trial, folders, metric) for metric in protocol.further],
    }


def _scored(
    trial: Trial, folders: Mapping[str, Mapping[int, Path]], metric: str
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Each arm's score of every seed, and each pretrained arm against scratch."""
    scores = {name: read_arm(name, by_seed, metric) for name, by_seed in folders.items()}
    against = [
        compare(scores[arm.name], scores[SCRATCH], metric) for arm in trial.arms if arm.generator
    ]
    values = {name: [arm.values[seed] for seed in trial.seeds] for name, arm in scores.items()}
    keys = ("arm", "against", "difference", "low", "high", "level", "verdict")
    return values, [{key: getattr(one, key) for key in keys} for one in against]


def _further(
    trial: Trial, folders: Mapping[str, Mapping[int, Path]], metric: str
) -> dict[str, Any]:
    values, comparisons = _scored(trial, folders, metric)
    arms = [{"name": name, "values": by_seed} for name, by_seed in values.items()]
    return {
        "metric": metric,
        "metric_title": METRIC_TITLES[metric],
        "arms": arms,
        "comparisons": comparisons,
    }


def write_study(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write study.json whole."""
    with replacing(out / STUDY) as partial:
        partial.write_text(json.dumps({"protocols": list(rows)}, indent=1, allow_nan=False) + "\n")
