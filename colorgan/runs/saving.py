"""A run's checkpoints: what is saved besides tensors, and what a resumed run is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from colorgan.checkpoints.checkpoint import Checkpoint
from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError, OtherWeightsError, SaveError
from colorgan.files import mapping, whole
from colorgan.models.model_config import ModelConfig
from colorgan.models.model_folder import probe


@dataclass(frozen=True)
class RunState:
    """The part of a run that is JSON in every checkpoint's `state.json`."""

    images_seen: int
    data_digest: str
    recipe: dict[str, Any]
    world_size: int
    model_role: str
    model: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the state as `RunState.of` reads it."""
        return asdict(self)

    @staticmethod
    def of(checkpoint: Checkpoint) -> RunState:
        """Read the state of a checkpoint; checkpoints from before `versions` have none.

        Raises:
            CheckpointError: It was not written by a run.
        """
        state = checkpoint.state
        # Types are checked here, once: later code takes the state at its word.
        texts = {name: state.get(name) for name in ("data_digest", "model_role")}
        groups = {name: state.get(name) for name in ("recipe", "model")}
        if not all(isinstance(each, str) for each in texts.values()) or not all(
            isinstance(each, dict) for each in groups.values()
        ):
            raise CheckpointError(f"{checkpoint.path} was not written by a run of colorgan")

        return RunState(
            images_seen=checkpoint.images_seen,
            data_digest=str(texts["data_digest"]),
            recipe=mapping(groups["recipe"]),
            world_size=whole(mapping(state).get("world_size")) or 1,
            model_role=str(texts["model_role"]),
            model=mapping(groups["model"]),
            versions={str(k): str(v) for k, v in mapping(state.get("versions")).items()},
        )


def check_same_data(checkpoint: Checkpoint, state: RunState, data_digest: str) -> None:
    """Refuse a checkpoint of other data.

    Raises:
        CheckpointError: Names both digests.
    """
    if state.data_digest != data_digest:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other data (manifest digest "
            f"{state.data_digest[:12]}, now {data_digest[:12]}): give the folders it was trained "
            "on, or another --run"
        )


def check_same_start(checkpoint: Checkpoint, state: RunState, model: ModelConfig) -> None:
    """Refuse a checkpoint of a run that started from other weights.

    Raises:
        OtherWeightsError: Names both digests.
    """
    began = str(state.model.get("init_digest") or "")
    # Checkpoints of older versions have no digest and are taken as they are.
    if began and began != model.init_digest:
        raise OtherWeightsError(
            f"{checkpoint.path} started from other weights than those at init now (digest "
            f"{began[:12]}, now {model.init_digest[:12]}): choose another --run, or remove "
            f"{checkpoint.path.parents[1]}"
        )


def changed_versions(state: RunState, now: Mapping[str, str]) -> list[str]:
    """Return `torch 2.12.0 -> 2.13.0` for each library that was another version at the save."""
    return [
        f"{name} {old} -> {now[name]}"
        for name, old in sorted(state.versions.items())
        # A new commit of our own is told elsewhere; another torch changes rounding.
        if name in now and now[name] != old and name != "source"
    ]


class RunSaver:
    """Writes a run's checkpoints. Methods are called on all ranks.

    Args:
        ranks: This process among the ranks.
        state: What is saved with every checkpoint; `images_seen` is filled in.
        model: What the trained network is, for consolidation.
        writer: Where they are written.
    """

    def __init__(
        self, ranks: Ranks, state: RunState, model: ModelConfig, writer: CheckpointWriter
    ) -> None:
        self._ranks, self._state, self._model, self._writer = ranks, state, model, writer

    def start(self, strategy: Strategy, images_seen: int) -> list[Path]:
        """Begin to write a checkpoint of everything the run needs to resume.

        Return those that are published by now.

        Raises:
            SaveError: A rank could not write; the earlier checkpoints are intact.
        """
        model = self._model.model_copy(
            update={
                "images_seen": images_seen,
                "data_digest": self._state.data_digest,
                "recipe": self._state.recipe,
                "source_version": self._state.versions.get("source", ""),
            }
        )
        state = {
            **self._state.to_json(),
            "images_seen": images_seen,
            "model": model.model_dump(mode="json"),
        }
        # The outputs are computed now, with these weights, in the precision of consolidation.
        roles = {**strategy.state(), "probe": self._outputs(strategy)}
        try:
            return self._writer.start(roles, state)
        except CheckpointError as error:
            raise SaveError(str(error)) from None

    def take_published(self) -> list[Path]:
        """Return the checkpoint in progress if it has been published; errors as in `start`."""
        try:
            return self._writer.take_published()
        except CheckpointError as error:
            raise SaveError(str(error)) from None

    def finish(self) -> list[Path]:
        """Wait for the checkpoint in progress and return it; errors as in `start`."""
        try:
            return self._writer.finish()
        except CheckpointError as error:
            raise SaveError(str(error)) from None

    def _outputs(self, strategy: Strategy) -> dict[str, Tensor]:
        """Return the network's outputs for a fixed input, which consolidation compares with."""
        role, device = self._state.model_role, self._ranks.device
        size = self._model.architecture.image_size
        # On all ranks: under ZeRO the network is put together from their parts.
        outputs = {"raw": probe(strategy.evaluated(role, ema=False), size, device)}
        if strategy.ema_name == role:
            outputs["average"] = probe(strategy.evaluated(role), size, device)
        return outputs
