"""The table of a study: every run's score, each arm against scratch, a verdict.

A protocol on which every run predicts one class has no verdict: nothing was learnt that could be
compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from colorgan.evaluation.record import SCORES, SavedEvaluation, read_evaluation
from colorgan.study.arms import Arm
from colorgan.study.comparison import ArmScores, compare, read_arm, survives_many
from colorgan.study.costs import read_costs
from colorgan.study.protocols import FROZEN, METRIC_TITLES
from colorgan.study.record import (
    ArmRecord,
    ArmValues,
    ComparisonRecord,
    FurtherScore,
    ProtocolRecord,
    SplitRecord,
    StudyRecord,
    write_study,
)
from colorgan.study.settings import StudySettings
from colorgan.study.trial import Folders, Trial, best_rates, read_scores

# A model that gives one class to this share of all pixels or images has learnt nothing else.
ONE_CLASS_SHARE = 0.995
# IoU of stray pixels: at 64 pixels, runs that are at background have other classes below it.
STRAY_IOU = 0.02


def write_table(settings: StudySettings, trials: Sequence[Trial]) -> None:
    """Write study.json from the evaluation folders of all runs, and print the verdicts.

    Raises:
        UsageError: an evaluation is missing, damaged or of other images.
    """
    rows = [protocol_record(trial, settings, len(trials)) for trial in trials]
    minutes = read_costs(settings.out / "steps")
    write_study(settings.out, StudyRecord(protocols=tuple(rows), core_minutes=minutes))

    num_comparisons = sum(len(row.comparisons) for row in rows)
    for row in rows:
        print(f"{row.title}: {row.metric_title}, {row.data.test} images")
        for each in row.comparisons:
            print(f"  {each.arm} and {each.against}: {each.verdict}")
    if num_comparisons > 1:
        print(
            f"{num_comparisons} comparisons at 95 % each: by chance alone one in twenty would show "
            "a difference. The verdicts say which stay with Bonferroni's correction."
        )


def protocol_record(trial: Trial, settings: StudySettings, num_protocols: int) -> ProtocolRecord:
    """Return one protocol's part of study.json.

    Args:
        trial: its runs or probes are complete.
        settings: of the study.
        num_protocols: that compare arms; all comparisons are corrected for together.
    """
    protocol = trial.protocol
    folders = trial.evaluations()
    frozen = protocol.task in FROZEN
    baseline, *_ = trial.compared_arms
    train = json.loads((trial.folder_of(trial.split.train) / "manifest.json").read_text())
    # Of any run: all are scored on one test part, which `compare` checks.
    test = read_scores(next(iter(folders[baseline.name].values())) / SCORES)

    pairs = _pairs(trial.compared_arms, settings.comparisons)
    num_comparisons = len(pairs) * num_protocols
    headline = {name: read_arm(name, runs, protocol.metric) for name, runs in folders.items()}
    # A linear classifier of features that say nothing still ranks: no class is looked for.
    looked_at = None if frozen else folders
    comparisons = compared(
        headline, pairs, protocol.metric, num_comparisons, looked_at, frozen=frozen
    )

    return ProtocolRecord(
        name=protocol.name,
        title=protocol.title,
        task=protocol.task,
        metric=protocol.metric,
        metric_title=METRIC_TITLES[protocol.metric],
        source=protocol.source,
        input=protocol.input,
        head=protocol.head,
        prediction=settings.predictions.get(protocol.name, ""),
        data=SplitRecord(
            title=trial.split.title,
            train=sum(shard["samples"] for shard in train["shards"]),
            test=int(test["images"]),
            classes=int(test["classes"]),
        ),
        seeds=tuple(map(str, trial.seeds[:1] if frozen else trial.seeds)),
        arms=_arm_records(trial, headline, folders),
        comparisons=comparisons,
        # Top-5 accuracy is undefined with five classes or fewer: no run has it.
        further=tuple(
            further_score(folders, pairs, metric, frozen=frozen)
            for metric in protocol.further
            if metric in test
        ),
    )


def _arm_records(
    trial: Trial, headline: Mapping[str, ArmScores], folders: Folders
) -> tuple[ArmRecord, ...]:
    """Return every arm with its values; of one that is trained, its schedule and what it tried."""
    scores = trial.search_scores()
    best = best_rates(scores)
    records = []
    for arm in trial.compared_arms:
        how = {}
        if trial.protocol.task not in FROZEN:
            tried = {f"{rate:g}": score for rate, score in scores.get(arm.name, {}).items()}
            how = {"stages": trial.stages_of(arm, best.get(arm.name)), "search": tried}
        records.append(
            ArmRecord(
                name=arm.name,
                settings=how,
                values=tuple(headline[arm.name].values.values()),
                pretraining_seeds=tuple(str(start.seed) for start in arm.starts if arm.pretrained),
                runs=tuple(str(folder.parent) for folder in folders[arm.name].values()),
            )
        )
    return tuple(records)


def _pairs(arms: Sequence[Arm], further: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return every arm with the first, which is not pretrained, and the pairs asked for."""
    baseline, *others = arms
    return [*((arm.name, baseline.name) for arm in others), *further]


def compared(
    scores: Mapping[str, ArmScores],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    num_comparisons: int = 1,
    folders: Folders | None = None,
    *,
    frozen: bool = False,
) -> tuple[ComparisonRecord, ...]:
    """Return the comparisons of pairs of arms.

    Args:
        scores: of each arm.
        pairs: (arm, the arm that it is compared with).
        metric: the score's name.
        num_comparisons: of the whole study, for the correction that the verdict names.
        folders: where the predictions are looked at; None: they are not.
        frozen: the features are: nothing was fine-tuned.
    """
    records = []
    for name, against in pairs:
        found = compare(scores[name], scores[against], metric, frozen=frozen)
        verdict, survives = found.verdict, None
        one_class = (
            _one_class([*folders[name].values(), *folders[against].values()]) if folders else ""
        )
        if one_class:
            verdict = f"no verdict: every run predicts one class alone ({one_class})"
        elif num_comparisons > 1 and found.is_difference:
            survives = survives_many(found, num_comparisons)
            word = "stays" if survives else "does not stay"
            verdict = f"{verdict}; {word} with Bonferroni for {num_comparisons} comparisons"
        # The record has the fields of the comparison that a reader needs.
        plain = asdict(found)
        plain |= {"verdict": verdict, "survives": survives}
        records.append(ComparisonRecord.model_validate(plain))
    return tuple(records)


def _one_class(folders: Sequence[Path]) -> str:
    """Return the class that is all that every run has learned; "" if one of them knows more."""
    names = set()
    for folder in folders:
        name = only_class(read_evaluation(folder))
        if not name:
            return ""
        names.add(name)
    return ", ".join(sorted(names))


def only_class(evaluation: SavedEvaluation) -> str:
    """Return the class that a model gives to nearly everything; "" if it knows others.

    A segmenter whose other classes have next to no IoU counts too: it paints stray pixels.
    """
    # Columns are predictions: what the model says, whatever is true.
    columns = [sum(column) for column in zip(*evaluation.confusion, strict=True)]
    if not sum(columns):
        return ""

    most = max(columns)
    name = evaluation.confusion_names[columns.index(most)]
    # Nearly all: a few stray predictions are no knowledge.
    if most >= ONE_CLASS_SHARE * sum(columns):
        return name

    others = [score or 0.0 for key, score in evaluation.per_class.items() if key != name]
    nothing_else = bool(others) and max(others) < STRAY_IOU
    return name if evaluation.kind == "segmenter" and nothing_else else ""


def further_score(
    folders: Folders, pairs: Sequence[tuple[str, str]], metric: str, *, frozen: bool = False
) -> FurtherScore:
    """Return the runs by another score."""
    scores = {name: read_arm(name, runs, metric) for name, runs in folders.items()}
    arms = [ArmValues(name=name, values=tuple(arm.values.values())) for name, arm in scores.items()]
    return FurtherScore(
        metric=metric,
        metric_title=METRIC_TITLES[metric],
        arms=tuple(arms),
        comparisons=compared(scores, pairs, metric, frozen=frozen),
    )
