"""A study as a list of steps, parents first, from packing to the report.

Nothing runs here: one list is executed on one machine (colorgan/study/runner.py) or submitted to a
cluster (`launcher/study.py --list_steps true`).

    <out>/pretrain/<arm>/    run folder, generator/, evaluation/; <arm>@<seed>/ with several seeds
    <out>/study.json         the table (colorgan/study/table.py)
    <out>/report/            report.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from colorgan.config.recipe import PretrainRecipe
from colorgan.config.settings import leaves
from colorgan.errors import UsageError
from colorgan.study.arms import (
    Arm,
    Start,
    generators_first,
    network_of_folder,
    network_of_recipe,
    scratch_arm,
    shared_network,
)
from colorgan.study.checks import check_recipe
from colorgan.study.protocols import (
    SHOWN_ONLY,
    Protocol,
    Split,
    find_protocol,
    last_fold,
    missing_root,
)
from colorgan.study.record import STUDY
from colorgan.study.settings import StudySettings
from colorgan.study.steps import IN_PROCESS, Step
from colorgan.study.table import write_table
from colorgan.study.trial import Trial


@dataclass(frozen=True)
class Plan:
    """All steps of a study.

    Args:
        settings: checked by `check`.
        launcher: the folder of the commands and of `configs/`.
    """

    settings: StudySettings
    launcher: Path

    @cached_property
    def steps(self) -> list[Step]:
        """All steps, parents first, each once."""
        steps = [*self._pack_steps(), *self._pretraining_steps()]
        for trial in self.trials:
            steps += trial.steps()
        # Last, as the table reads what all others have written.
        steps += self._final_steps([step.name for step in steps])

        # Protocols share packed parts: the first step of a name is kept.
        once: dict[str, Step] = {}
        for step in steps:
            once.setdefault(step.name, step)
        return list(once.values())

    @cached_property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """The recipes of the arms to pretrain, with their data and scaled size.

        Raises:
            UsageError: one is not a recipe of launcher/pretrain.py.
        """
        recipes = self.settings.pretrain
        if not recipes and not self.settings.generators:
            text = (self.launcher / "configs" / "sample.yaml").read_text()
            recipes = {"pretrained": yaml.safe_load(text)}

        complete = {}
        for name, recipe in recipes.items():
            # Before the data is filled in: the sample is packed at the network's size.
            _check_recipe(name, recipe)
            complete[name] = self._with_data(_scaled(recipe, self.settings.scale))
            _check_recipe(name, complete[name])
        return complete

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Scratch, then every pretrained arm; encoders from elsewhere last."""
        arms = {
            name: Arm(name, (Start(name, path),)) for name, path in self.settings.generators.items()
        }
        for name in self.recipes:
            starts = []
            for folder, seed in self._pretraining_runs(name).items():
                starts.append(Start(folder.name, folder / "generator", seed))
            # One arm, several pretraining seeds: they are draws of one recipe.
            arms[name] = Arm(name, tuple(starts))
        return (scratch_arm(), *(arms[name] for name in generators_first(self._networks)))

    @cached_property
    def network(self) -> dict[str, Any]:
        """The network that all arms share."""
        return shared_network(
            {name: self._networks[name] for name in generators_first(self._networks)}
        )

    @cached_property
    def trials(self) -> list[Trial]:
        """One trial per protocol, on the first of its splits that is on disk."""
        return [self._trial(find_protocol(name)) for name in self.settings.protocols]

    @cached_property
    def _networks(self) -> dict[str, dict[str, Any]]:
        given = {name: network_of_folder(path) for name, path in self.settings.generators.items()}
        return {**given, **{name: network_of_recipe(each) for name, each in self.recipes.items()}}

    # --- Corpora

    def _root(self, protocol: Protocol) -> Path:
        root = self.settings.roots.of(protocol.corpus)
        if root is None and protocol.corpus != "voc":
            raise UsageError(missing_root(protocol))
        # Only VOC can be drawn.
        return root or self.settings.out / "raw" / "VOCdevkit"

    def _split(self, protocol: Protocol, root: Path) -> Split:
        """Return the first way of splitting the corpus that is on disk; of one way, that one."""
        # The last way is the fallback; packing names what it lacks.
        for split in protocol.data[:-1]:
            if split.train.is_on_disk(root) and split.test.is_on_disk(root):
                return split
        return protocol.data[-1]

    def _trial(self, protocol: Protocol) -> Trial:
        settings = self.settings
        root = self._root(protocol)
        parents = {
            folder.name: f"consolidate {folder.name}"
            for name in self.recipes
            for folder in self._pretraining_runs(name)
        }
        # The drawn VOC appears with the first set of the sample.
        if settings.roots.voc is None:
            parents["voc"] = self._sample_step("voc-train", 64).name
        return Trial(
            protocol,
            self._split(protocol, root),
            root,
            settings.out,
            self.arms,
            settings.seeds,
            self.network,
            dict(leaves(settings.finetune)),
            settings.epochs_times.get(protocol.name, 1.0),
            settings.search,
            parents,
        )

    def _sample_step(self, split: str, image_size: int) -> Step:
        """Return the step that draws the built-in sample and packs one of its splits."""
        folder = self.settings.out / "shards" / f"sample-{split}-{image_size}"
        recipe = {
            "corpus": "sample",
            "root": str(self.settings.out / "raw"),
            "split": split,
            "image": f"squash:{image_size}",
            "out": str(folder),
        }
        return Step(
            f"pack {folder.name}",
            "pack",
            folder / "manifest.json",
            recipe=lambda: recipe,
        )

    def _pack_steps(self) -> Iterator[Step]:
        """Yield the steps that pack the built-in sample and the sets to pretrain on.

        Those of the sample are a chain: the first one draws the images.
        """
        steps = []
        if self.settings.roots.voc is None:
            steps.append(self._sample_step("voc-train", 64))
        # Packed once at each size, however many arms train on it.
        for recipe in self.recipes.values():
            for folder in _data_folders(recipe):
                for split in ("train", "val"):
                    step = self._sample_step(split, int(network_of_recipe(recipe)["image_size"]))
                    if folder == str(step.done.parent):
                        steps.append(step)

        before: tuple[str, ...] = ()
        for step in {step.name: step for step in steps}.values():
            yield replace(step, parents=before)
            before = (step.name,)
        for name in self.settings.pack:
            yield self._pack_step(name)

    def _pack_step(self, name: str) -> Step:
        """Return the step that packs a set to pretrain on."""
        folder = self.settings.out / "shards" / name
        root = {"root": str(self.settings.roots.pretrain)}
        recipe = {**root, **self.settings.pack[name], "out": str(folder)}
        # A stratified call packs several folders in this one: NAME/train, NAME/val, ...
        fold = last_fold(str(recipe.get("stratify") or ""))
        return Step(
            f"pack {name}",
            "pack",
            folder / fold / "manifest.json",
            recipe=lambda: recipe,
        )

    # --- Pretraining

    def _with_data(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pretraining recipe with packed folders: the built-in sample if it names none."""
        data = recipe.get("data") or {}
        if "data.train" in recipe or "train" in data:
            return self._with_packed(recipe) if self.settings.pack else dict(recipe)

        size = int(network_of_recipe(recipe)["image_size"])
        folders = {
            split: [str(self._sample_step(split, size).done.parent)] for split in ("train", "val")
        }
        return {**recipe, "data": {**data, **folders}}

    def _with_packed(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe, data keys dotted, with the folders of the sets that it names."""
        # Dotted keys only: nested and dotted ones of one group would hide each other.
        changed = {key: value for key, value in recipe.items() if key != "data"}
        for key, value in leaves({"data": recipe.get("data") or {}}):
            changed[key] = value
        for key in ("data.train", "data.val"):
            names = changed.get(key)
            if isinstance(names, list | tuple):
                changed[key] = [self._packed_folder(str(name)) for name in names]
        return changed

    def _packed_folder(self, name: str) -> str:
        """Return the folder of `NAME` or, of a stratified set, `NAME/train`; others are folders."""
        is_packed = name.partition("/")[0] in self.settings.pack
        return str(self.settings.out / "shards" / name) if is_packed else name

    def _pretraining_runs(self, name: str) -> dict[Path, int]:
        """Return the run folders of an arm with their seeds."""
        parent = self.settings.out / "pretrain"
        seeds = self.settings.pretrain_seeds
        if not seeds:
            return {parent / name: int(self.recipes[name].get("seed", 0))}
        return {parent / f"{name}@{seed}": seed for seed in seeds}

    def _pretraining_steps(self) -> Iterator[Step]:
        packed = {Path(step.recipe()["out"]): step.name for step in self._pack_steps()}
        for name, recipe in self.recipes.items():
            for run, seed in self._pretraining_runs(name).items():
                # Without a list, a recipe's own seed holds.
                own = {"seed": seed} if self.settings.pretrain_seeds else {}
                # Of a stratified set they name folders within the one that is packed.
                parents = dict.fromkeys(
                    packed[out]
                    for folder in map(Path, _data_folders(recipe))
                    for out in (folder, folder.parent)
                    if out in packed
                )
                yield from self._one_pretraining(
                    {**recipe, **own, "run": str(run)}, run, tuple(parents)
                )

    def _one_pretraining(
        self, recipe: dict[str, Any], run: Path, parents: tuple[str, ...]
    ) -> Iterator[Step]:
        """Yield pretraining, its generator, and with a validation set the generator's scores."""
        pretrain = f"pretrain {run.name}"
        generator = run / "generator"
        yield Step(
            pretrain,
            "pretrain",
            run / "log.jsonl",
            parents,
            lambda: recipe,
        )

        words = {"run": str(run), "out": str(generator)}
        consolidate = f"consolidate {run.name}"
        yield Step(
            consolidate, "consolidate", generator / "config.json", (pretrain,), lambda: words
        )

        # The report shows color scores beside the transfer.
        val = dict(leaves(recipe)).get("data.val")
        if val:
            scored = {
                "model": str(generator),
                "data": val,
                "out": str(run / "evaluation"),
            }
            done = run / "evaluation" / "scores.json"
            yield Step(
                f"evaluate {run.name}",
                "evaluate",
                done,
                (consolidate,),
                lambda: scored,
            )

    # --- The end

    def _final_steps(self, names: list[str]) -> Iterator[Step]:
        out = self.settings.out
        page = out / "report" / "report.html"
        compared = [trial for trial in self.trials if trial.protocol.task not in SHOWN_ONLY]
        if compared:
            yield Step(
                "table",
                IN_PROCESS,
                out / STUDY,
                tuple(names),
                # In this process: it reads a few files and needs no device.
                action=lambda: write_table(self.settings, compared),
                always=True,
            )

        folders = [str(out)] if compared else []
        for trial in self.trials:
            if trial.protocol.task in SHOWN_ONLY:
                folders += [str(step.done.parent) for step in trial.probes()]
        recipe = {"out": str(page.parent), "runs": folders}
        parents = ("table",) if compared else tuple(names)
        yield Step(
            "report",
            "report",
            page,
            parents,
            lambda: recipe,
            always=True,
        )


def _data_folders(recipe: Mapping[str, Any]) -> list[str]:
    """Return the packed folders that a pretraining recipe names."""
    plain = dict(leaves(recipe))
    found: list[str] = []
    for key in ("data.train", "data.val"):
        value = plain.get(key) or []
        found += [value] if isinstance(value, str) else [str(each) for each in value]
    return found


def _scaled(recipe: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return the recipe with its image size multiplied, in the spelling that it has."""
    if scale == 1.0:
        return dict(recipe)

    size = round(network_of_recipe(recipe)["image_size"] * scale)
    if "network.image_size" in recipe:
        return {**recipe, "network.image_size": size}
    return {**recipe, "network": {**(recipe.get("network") or {}), "image_size": size}}


def _check_recipe(name: str, recipe: Mapping[str, Any]) -> None:
    check_recipe(recipe, PretrainRecipe, f"--pretrain {name} is not a recipe of pretrain.py")
