"""Mistakes in a study's settings that can be found before hours of work."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colorgan.config.recipe import FinetuneRecipe, RunRecipe
from colorgan.config.settings import leaves
from colorgan.errors import UsageError
from colorgan.models.model_config import read_config
from colorgan.probes.scikit_learn import check_sklearn
from colorgan.study.protocols import FROZEN, Protocol, find_protocol, missing_root
from colorgan.study.record import (
    MAX_ARMS,
    MAX_COMPARISONS,
    MAX_NAME,
    MAX_PROTOCOLS,
    MAX_VALUES,
    STUDY,
)
from colorgan.study.settings import StudySettings

STEPS = "steps"  # the folder of the steps' recipes, marks and logs
# Keys of the fine-tuning recipe that the study sets for each arm, seed and protocol.
OWN_KEYS = (
    "task",
    "init",
    "seed",
    "run",
    "stages",
    "epochs",
    "learning_rate",
    "network",
    "dry_run",
    "data.train",
    "data.val",
)


def check(settings: StudySettings) -> None:
    """Find the mistakes that can be found before hours of work.

    Raises:
        UsageError, ModelFolderError: one of them, in a sentence.
    """
    # A misspelt protocol would be a key without effect.
    for name in (*settings.epochs_times, *settings.predictions):
        find_protocol(name)
    for name in settings.protocols:
        _check_protocol(find_protocol(name), settings)
    for key, root in settings.roots:
        if root is not None and not root.is_dir():
            raise UsageError(f"--roots.{key} {root} is not a folder")
    for name, recipe in settings.pack.items():
        if "root" not in recipe and settings.roots.pretrain is None:
            raise UsageError(f"--pack {name} needs --roots.pretrain, the folder of its corpus")
    for name, folder in settings.generators.items():
        _check_generator(name, folder)

    _check_size(settings)
    _check_finetune(settings)
    if settings.launch:
        _check_launch(settings.launch)


def check_recipe(recipe: Mapping[str, Any], schema: type[RunRecipe], name: str) -> None:
    """Refuse settings that are no recipe of a command.

    Args:
        recipe: Nested, dotted, or both.
        schema: Of the command.
        name: What the message calls it.

    Raises:
        UsageError: Names each key and what is wrong with it.
    """
    nested: dict[str, Any] = {}
    for key, value in leaves(recipe):
        *groups, last = key.split(".")
        place: Any = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UsageError(f"{name}: {key}: {group} is a value here, not a group of keys")
        place[last] = value

    try:
        schema.model_validate(nested)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise UsageError(f"{name}: {problems}") from None


def _check_size(settings: StudySettings) -> None:
    """Refuse a study that study.json could not hold whole."""
    num_runs = len(settings.seeds) * max(1, len(settings.pretrain_seeds))
    sizes = {
        "runs of an arm": (num_runs, MAX_VALUES),
        "arms": (len(settings.arm_names) + 2, MAX_ARMS),  # with scratch and random
        "protocols": (len(settings.protocols), MAX_PROTOCOLS),
        "comparisons": (len(settings.comparisons) + len(settings.arm_names), MAX_COMPARISONS),
    }
    for what, (size, most) in sizes.items():
        if size > most:
            raise UsageError(f"a study has at most {most} {what}, this one {size}: make two of it")
    for name in settings.arm_names:
        if len(name) > MAX_NAME:
            raise UsageError(f"{name!r} cannot name an arm: at most {MAX_NAME} characters")


def _check_finetune(settings: StudySettings) -> None:
    # These differ between arms and seeds: one value for all runs would undo the comparison.
    keys = [key for key, _ in leaves(settings.finetune)]
    for own in OWN_KEYS:
        if any(key == own or key.startswith(f"{own}.") for key in keys):
            raise UsageError(
                f"--finetune {own}: the study itself sets it for each arm, seed and protocol"
            )
    # Now, not after days of pretraining.
    check_recipe(
        settings.finetune, FinetuneRecipe, "--finetune does not fit a recipe of finetune.py"
    )


def _check_launch(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--launch {command!r}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--launch {command!r}: program not found")


def _check_protocol(protocol: Protocol, settings: StudySettings) -> None:
    drawn = settings.roots.voc is None and protocol.corpus == "voc"
    # The first way of splitting stands for all: variants of a protocol share its year.
    if drawn and protocol.data[0].test.split.startswith("2007"):
        raise UsageError(
            f"{protocol.name} needs --roots.voc: the built-in sample has VOC 2012 only"
        )
    if settings.roots.of(protocol.corpus) is None and not drawn:
        raise UsageError(missing_root(protocol))
    if protocol.task in FROZEN - {"knn"}:
        check_sklearn()


def _check_generator(name: str, folder: Path) -> None:
    # The config alone: weights are read when they are needed.
    kind = read_config(folder).kind
    if kind not in ("generator", "encoder"):
        raise UsageError(
            f"--generators {name}: {folder} holds a {kind}; give the output of consolidate.py or "
            "import_encoder.py"
        )


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something other than a study.

    Raises:
        UsageError: it is a file, a run, or has other contents.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")

    # One of its own names is enough: a study that was stopped early has little more.
    names = {path.name for path in out.iterdir()}
    if names and not names & {STEPS, STUDY}:
        raise UsageError(
            f"--out {out} holds something other than a study ({', '.join(sorted(names)[:3])}): "
            "give another folder"
        )
