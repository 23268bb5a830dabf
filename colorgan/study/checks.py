"""Mistakes in a study's settings that can be found before hours of work."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from colorgan.errors import UsageError
from colorgan.models.model_config import read_config
from colorgan.probes.scikit_learn import check_sklearn
from colorgan.study.protocols import FROZEN, Protocol, find_protocol, missing_root
from colorgan.study.record import STUDY
from colorgan.study.settings import StudySettings

STEPS = "steps"  # the folder of the steps' recipes, marks and logs
# Keys of the fine-tuning recipe that the study sets for each arm, seed and protocol.
OWN_KEYS = {"task", "init", "seed", "run", "stages", "network", "dry_run"}


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

    # These differ between arms and seeds: one value for all runs would undo the comparison.
    taken = sorted({str(key).split(".")[0] for key in settings.finetune} & OWN_KEYS)
    if taken:
        raise UsageError(
            f"--finetune {taken[0]}: the study itself sets it for each arm, seed and protocol"
        )
    if settings.launch and shutil.which(shlex.split(settings.launch)[0]) is None:
        raise UsageError(f"--launch {settings.launch!r}: program not found")


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
