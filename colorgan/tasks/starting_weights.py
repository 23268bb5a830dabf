"""Where pretraining starts from: the seed, a generator, another run's weights or whole state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint
from colorgan.config.recipe import SCRATCH, PretrainRecipe
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.files import mapping, number
from colorgan.models.model_folder import load_model


@dataclass(frozen=True)
class Start:
    """What a new run starts from.

    Attributes:
        weights: By network, tensors by name; {} for networks drawn from the seed.
        checkpoint: The other run's, if its optimizers are loaded as well.
        text: For the user; "" for networks drawn from the seed.
        encoder_weights: File of weights of the generator's encoder, behind the draw.
    """

    weights: Mapping[str, Mapping[str, Tensor]]
    checkpoint: Checkpoint | None = None
    text: str = ""
    encoder_weights: Path | None = None

    def load_into(self, networks: Mapping[str, nn.Module]) -> None:
        """Give networks their starting weights.

        Raises:
            UsageError: They have other sizes.
        """
        for name, module in networks.items():
            weights = self.weights.get(name)
            if weights is None:
                continue
            own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
            given = {key: tuple(tensor.shape) for key, tensor in weights.items()}
            if own != given:
                # A missing layer explains more than a wrong shape, so it is named first.
                keys = sorted(own.keys() ^ given.keys()) or [k for k in own if own[k] != given[k]]
                raise UsageError(
                    f"{self.text} has another {name} than this recipe ({keys[0]} differs): set "
                    "network and discriminator as they are there"
                )
            module.load_state_dict(weights)

    def load_optimizers(self, strategy: Strategy) -> None:
        """Load the other run's optimizers and averages, if they are asked for. All ranks."""
        if self.checkpoint is not None:
            strategy.load_state(_WithAverage(self.checkpoint, strategy.ema_name))


def read_start(recipe: PretrainRecipe, ranks: Ranks) -> Start:
    """Read what a new run starts from, as the recipe's `init` or `resume_from` names it.

    Called on all ranks.

    Raises:
        UsageError: Both are given, or the folder holds neither a generator nor a run.
        CheckpointError: No checkpoint of the other run is intact.
    """
    if recipe.resume_from is not None and recipe.init != SCRATCH:
        raise UsageError("give init or resume_from, not both")
    if recipe.reset_optimizer and recipe.resume_from is None:
        raise UsageError("reset_optimizer is for resume_from: name the run to start from")

    other = recipe.resume_from or (recipe.init if recipe.init != SCRATCH else None)
    if recipe.network.encoder_weights is not None and other is not None:
        raise UsageError(
            f"network.encoder_weights and {other} both name weights to start from: leave one out"
        )

    if recipe.resume_from is not None:
        return _run_start(
            recipe, recipe.resume_from, ranks, with_optimizers=not recipe.reset_optimizer
        )
    if recipe.init == SCRATCH:
        file = recipe.network.encoder_weights
        text = f"the encoder in {file}" if file else ""
        return Start({}, text=text, encoder_weights=file)

    folder = Path(recipe.init)
    # A run as `init` gives weights alone; `resume_from` is the way to take its optimizers.
    if (folder / CHECKPOINTS).is_dir():
        return _run_start(recipe, folder, ranks, with_optimizers=False)
    module, config = load_model(folder, "generator")
    _check_scale(recipe, config.ab_scale, folder)
    return Start(
        {"generator": module.state_dict()},
        text=f"the generator in {folder}",
    )


def _check_scale(recipe: PretrainRecipe, scale: float, folder: Path) -> None:
    # Outputs are a and b over this scale: with another one, the weights mean other colors.
    if scale != recipe.network.ab_scale:
        raise UsageError(
            f"network.ab_scale is {recipe.network.ab_scale}, but {folder} was trained with "
            f"{scale}: give --network.ab_scale {scale}"
        )


def _run_start(recipe: PretrainRecipe, run: Path, ranks: Ranks, *, with_optimizers: bool) -> Start:
    notes: list[str] = []
    checkpoint = latest_checkpoint(run / CHECKPOINTS, ranks, notes.append)
    if checkpoint is None:
        raise UsageError(f"{run} holds no run with a checkpoint to start from")
    roles = checkpoint.roles()
    model = mapping(checkpoint.state.get("model"))
    if "generator" not in roles:
        kind = model.get("kind", "another network")
        raise UsageError(f"{run} holds a run of a {kind}: name one of pretraining")

    if with_optimizers and recipe.loss.gan != "none" and "discriminator" not in roles:
        raise UsageError(
            f"{run} has trained no discriminator to go on with: give --init {run} in place of "
            "--resume_from, or --reset_optimizer true"
        )

    # Checkpoints of older versions do not say it and are taken as they are.
    _check_scale(recipe, number(model.get("ab_scale")) or recipe.network.ab_scale, run)

    # Training goes on from the raw weights; a new start without optimizers takes the average.
    weights = {}
    for name in ("generator", "discriminator"):
        averaged = f"{name}_average"
        role = averaged if averaged in roles and not with_optimizers else name
        if role in roles:
            weights[name] = checkpoint.tensors(role)
    return Start(
        weights,
        checkpoint if with_optimizers else None,
        f"{checkpoint.path} ({checkpoint.images_seen:,} images seen)",
    )


@dataclass(frozen=True)
class _WithAverage:
    """A checkpoint whose raw weights stand in for the average, if it has none."""

    checkpoint: Checkpoint
    ema_name: str | None

    def _role(self, role: str) -> str:
        # The other run kept no average; one that starts at the raw weights is what it would be now.
        if role == f"{self.ema_name}_average" and role not in self.checkpoint.roles():
            return str(self.ema_name)
        return role

    def shapes(self, role: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor of a role."""
        return self.checkpoint.shapes(self._role(role))

    def read(self, role: str, name: str, offset: int = 0, length: int | None = None) -> Any:
        """Return a flat slice of a tensor."""
        return self.checkpoint.read(self._role(role), name, offset, length)
