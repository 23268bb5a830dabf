"""A run's recipe on disk: `recipe.yaml`, written, read, and compared at each start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from colorgan.checkpoints.checkpoint import CHECKPOINTS, STATE, newest_first
from colorgan.config.recipe import SCRATCH, RunRecipe
from colorgan.config.settings import dump_recipe, recipe_difference
from colorgan.errors import OtherRecipeError, UsageError
from colorgan.files import mapping, number, read_json, read_text, replacing

# Not at run time: studies and reports read recipes without torch.
if TYPE_CHECKING:
    from colorgan.distributed.ranks import Ranks

RECIPE = "recipe.yaml"

# What may change between two starts of one run: it does not enter the weights. `data.train` is
# compared by its digest. `data.hardware_decoder_share` is not among them: a GPU's hardware decoder
# gives other pixels than its CUDA decoder, by a level or two. The memory format only rounds
# otherwise, and DeepSpeed has one alone: a run in NHWC goes on under ZeRO.
FREE_KEYS = (
    "run",
    "dry_run",
    "output",
    "launch",
    "batch.channels_last",
    "data.train",
    "data.val",
    "data.decode_threads",
    "data.prefetch_batches",
    "data.max_bad_share",
    "data.cache_dir",
    "data.cache_gb",
)
# The length of a run, which may grow.
LENGTH_KEYS = ("images", "epochs", "stages")


def write_recipe(folder: Path, recipe: RunRecipe) -> None:
    """Write a run's recipe, whole or not at all."""
    with replacing(folder / RECIPE) as path:
        path.write_text(dump_recipe(recipe))


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe in a file, as plain data.

    Raises:
        UsageError: It cannot be read, or is not a recipe.
    """
    try:
        text = read_text(path)
        # Repeated references (&a, *a) unfold without bound; no recipe of ours has one.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError
        # Never the loader for users' recipes: what a run wrote is plain, and may come from
        # elsewhere.
        recipe = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        recipe = None

    if not isinstance(recipe, dict) or not recipe:
        raise UsageError(
            f"{path} is not a recipe that a run wrote: restore it, or choose another folder"
        )
    return {str(key): value for key, value in recipe.items()}


def saved_recipe(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Return the recipe of the run in a folder, {} for a new run. Called on all ranks.

    Without `recipe.yaml` it is the newest checkpoint's. It is only compared later.
    """
    # From rank 0: ranks that chose by different files would compute in different precisions.
    return ranks.gather(_saved_recipe(folder) if ranks.main else {})[0]


def _saved_recipe(folder: Path) -> dict[str, Any]:
    try:
        return read_recipe(folder / RECIPE)
    except UsageError:
        checkpoints = newest_first(folder / CHECKPOINTS)
        return mapping(read_json(checkpoints[0] / STATE).get("recipe")) if checkpoints else {}


@dataclass(frozen=True)
class Change:
    """How a new start's recipe differs from the run's.

    Attributes:
        keys: Lines `key: old -> new` of keys that must not change.
        length: The same of the run's length.
        decays: Whether the learning rate of the part that gets longer depends on the length.
    """

    keys: list[str]
    length: list[str]
    decays: bool = False


def compare_recipes(old: Mapping[str, Any], recipe: RunRecipe) -> Change:
    """Return what a new start changes of a run's recipe, without what may change freely."""
    # Keys that are newer than the run count as their defaults, which mean what it did.
    before = _with_starts(with_defaults(old, recipe))
    now = _with_starts(recipe.model_dump(mode="json"))
    # A fine-tuning's checkpoint has the digest of the weights that it began with: they may move.
    if "stages" in now and SCRATCH not in (before.get("init"), now["init"]):
        before["init"] = now["init"]
    # As JSON on both sides: a tuple in memory is a list on disk.
    lines = recipe_difference(before, now, ignore=FREE_KEYS)

    length = [line for line in lines if line.partition(":")[0] in LENGTH_KEYS]
    decays = mapping(before.get("optimizer")).get("schedule", "constant") != "constant"
    if isinstance(before.get("stages"), list) and "stages" in now:
        grown = _grown_stages(before["stages"], now["stages"])
        if grown is None:
            length = []
        else:
            decays = grown
    return Change([line for line in lines if line not in length], length, decays)


def _with_starts(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with the folders that a run starts from spelled in one way."""
    folders = {
        key: str(Path(recipe[key]).expanduser().resolve())
        for key in ("init", "resume_from")
        if isinstance(recipe.get(key), str) and recipe[key] != SCRATCH
    }
    return {**recipe, **folders}


def _grown_stages(old: Sequence[Any], new: Sequence[Any]) -> bool | None:
    """Return whether a stage that decays got longer; None if stages changed otherwise.

    The last stage may get longer, and stages may be added.
    """
    last = len(old) - 1
    if last < 0 or len(new) < len(old) or list(new[:last]) != list(old[:last]):
        return None

    before, after = mapping(old[last]), mapping(new[last])
    epochs = number(before.get("epochs"))
    same = {**before, "epochs": after["epochs"]} == after
    if epochs is None or not same or after["epochs"] < epochs:
        return None
    return bool(after["epochs"] > epochs and after["schedule"] != "constant")


def with_defaults(old: Mapping[str, Any], recipe: RunRecipe) -> dict[str, Any]:
    """Return a recipe from disk with the defaults of keys that are newer than the file."""
    try:
        # Validated, so that other spellings of one value (1e-3, 0.001) are equal.
        return type(recipe).model_validate(dict(old)).model_dump(mode="json")
    # A key that no longer exists: shown as a difference, for the user to judge.
    except ValidationError:
        return dict(old)


def refuse_change(change: Change, folder: Path) -> None:
    """Refuse a start that changes a key of the run that must not change.

    Raises:
        OtherRecipeError: Names each key with both values.
    """
    if change.keys:
        raise OtherRecipeError(
            f"{folder} holds a run with another recipe: choose another --run, or undo\n  "
            + "\n  ".join(change.keys)
        )


def check_length(change: Change, images_seen: int, before: int | None, now: int) -> str | None:
    """Return a note on a run that is extended; None if its length is as before.

    Args:
        change: Of the recipe.
        images_seen: By the run's newest checkpoint.
        before: The length in images of the run that wrote that checkpoint; None if unknown.
        now: Its new length.

    Raises:
        OtherRecipeError: The new length is shorter than what the run has seen, or would change the
            learning rate of an unfinished run.
    """
    if not change.length:
        return None

    keys = ", ".join(change.length)
    if now < images_seen:
        raise OtherRecipeError(
            f"{keys}: the run has already seen {images_seen:,} images, more than {now:,}: choose a "
            "larger length, or another --run"
        )
    # A finished run's rate has ended its decay; a longer one starts from there by a new rule.
    finished = before is None or images_seen >= before
    if change.decays and not finished:
        raise OtherRecipeError(
            f"{keys}: the learning rate decays over the run's length, and the run has seen "
            f"{images_seen:,} of {before:,} images: finish it with the old length and extend it "
            "then, or choose another --run"
        )

    schedule = "; its learning rate follows the new length" if change.decays else ""
    return f"extended to {now:,} images ({keys}){schedule}"
