"""Arms of a study: scratch and pretrained generators, and the network that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorgan.config.recipe import SCRATCH, NetworkRecipe
from colorgan.config.settings import leaves
from colorgan.errors import UsageError
from colorgan.models.model_config import UNET, read_config, weights_digest

# Keys of `network` that an encoder from elsewhere shares with the U-Net.
SHARED = ("image_size", "ab_scale", "norm", "bias_before_norm", "dropout")


@dataclass(frozen=True)
class Start:
    """What one fine-tuning run starts from.

    Attributes:
        name: begins the names of its run folders.
        generator: folder of the weights; None for scratch and random weights.
        seed: of the pretraining.
    """

    name: str
    generator: Path | None = None
    seed: int = 0

    def inputs(self) -> dict[str, str]:
        """Return the digest of the weights, for the steps that start from them."""
        if self.generator is None:
            return {}
        # By content: a generator that was trained again under its old name makes its runs anew.
        return {"weights of init": weights_digest(self.generator)}


@dataclass(frozen=True)
class Arm:
    """One way to start: a row of the table, with a start per pretraining seed."""

    name: str
    starts: tuple[Start, ...]

    @property
    def pretrained(self) -> bool:
        """Whether it starts from generators."""
        return self.starts[0].generator is not None


def scratch_arm() -> Arm:
    """Return the arm that starts from random weights."""
    return Arm(SCRATCH, (Start(SCRATCH),))


def network_of_folder(folder: Path) -> dict[str, Any]:
    """Return the architecture of a model folder as keys of a recipe's `network`.

    Encoders from elsewhere are networks of their own: only their input and the decoder's settings
    count.
    """
    config = read_config(folder)
    plain = {**config.architecture.model_dump(), "ab_scale": config.ab_scale}
    if config.kind == "encoder":
        return {key: plain[key] for key in SHARED}
    return _network_of(plain)


def network_of_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `network` of a pretraining recipe with the schema's defaults."""
    own = {
        key.removeprefix("network."): value
        for key, value in leaves(recipe)
        if key.startswith("network.")
    }
    # Through the schema: a recipe that leaves a key out has its default.
    plain = NetworkRecipe.model_validate(own).model_dump()
    return _network_of(plain)


def _network_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a generator's network shares with the same one from scratch."""
    keys = [*SHARED, "width"]
    # Only where it is another than the default: the steps of older studies stay as they were.
    if plain["encoder"] != UNET:
        keys.append("encoder")
    return {key: plain[key] for key in keys}


def shared_network(networks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the network of all arms; from scratch it is the same with other weights.

    Args:
        networks: of each pretrained arm, generators first.

    Raises:
        UsageError: two arms differ, or no arm is a generator.
    """
    (first, network), *others = networks.items()
    if "width" not in network:
        raise UsageError(
            f"no arm is a generator: {first} is an encoder from elsewhere, and scratch is the U-Net"
        )

    # An encoder from elsewhere has fewer keys: what it lacks is not compared.
    for name, other in others:
        whole = {"encoder": UNET, **other} if "width" in other else other
        for key, value in whole.items():
            own = network.get(key, UNET)
            if value != own:
                raise UsageError(
                    f"{first} has {key} {own}, {name} has {value}: arms are compared on "
                    "one network; make another study for the other"
                )
    return dict(network)


def generators_first(networks: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return the arms' names, encoders from elsewhere last."""
    # False sorts before True, and `sorted` keeps the order of equals.
    return sorted(networks, key=lambda name: "width" not in networks[name])
