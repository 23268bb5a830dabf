"""Consolidation: which weights are taken, that they are read in slices, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from torch import Tensor

from colorgan.checkpoints.checkpoint import Checkpoint, open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError, ModelFolderError
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model, load_model, probe
from colorgan.models.modes import initialise

CPU = torch.device("cpu")
SMALL = Architecture(
    image_size=32,
    width=4,
    norm="batch",
    bias_before_norm=False,
    dropout=0.5,
)
CONFIG = ModelConfig(kind="generator", architecture=SMALL, ab_scale=128.0)


def network(seed: int) -> torch.nn.Module:
    module = build_model(CONFIG)
    initialise(module, seed)
    return module


def save(folder: Path, *, ema: bool = True, **changes: Any) -> Checkpoint:
    """Save a generator of seed 0 and its average, which is another one of seed 1."""
    raw = network(0)
    average = network(1)
    roles: dict[str, dict[str, Tensor]] = {
        "generator": raw.state_dict(),
        "probe": {"raw": probe(raw, 32, CPU)},
    }
    if ema:
        roles["generator_average"] = average.state_dict()
        roles["probe"]["average"] = probe(average, 32, CPU)
    model = CONFIG.model_dump(mode="json")
    state = {"images_seen": 8, "model_role": "generator", "model": model, **changes}
    path = save_checkpoint(
        folder,
        ranks=Ranks.single(),
        roles=roles,
        state=state,
        keep_last=1,
    )

    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("ema", "weights", "seed", "recorded"),
    [
        (True, None, 1, "average"),
        (True, "raw", 0, "raw"),
        (True, "average", 1, "average"),
        (False, None, 0, "raw"),
    ],
)
def test_the_average_is_taken_unless_raw_weights_are_asked_for(
    tmp_path: Path, ema: bool, weights: Any, seed: int, recorded: str
) -> None:
    config = consolidate(
        save(tmp_path / "c", ema=ema),
        tmp_path / "g",
        weights,
    )

    assert config.weights == recorded
    module, _ = load_model(tmp_path / "g", "generator")
    for name, tensor in network(seed).state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_an_average_that_was_not_saved_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "c", ema=False)
    with pytest.raises(CheckpointError, match="contains nothing for generator_average"):
        consolidate(source, tmp_path / "g", "average")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    "model",
    [None, [], {}, {"kind": "dog"}, {**CONFIG.model_dump(), "x": 1}],
)
def test_a_checkpoint_that_does_not_describe_its_model_is_refused(
    tmp_path: Path, model: Any
) -> None:
    with pytest.raises(CheckpointError, match="does not describe a model"):
        consolidate(save(tmp_path / "c", model=model), tmp_path / "g")


def test_weights_are_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No slice is larger than a block, so memory does not grow with the network."""
    from colorgan.models import weights_file

    monkeypatch.setattr(weights_file, "BLOCK_ELEMENTS", 100)
    lengths: list[int | None] = []
    read = Checkpoint.read

    def recorded(
        self: Checkpoint, role: str, name: str, offset: int = 0, length: int | None = None
    ) -> Tensor:
        if role == "generator":
            lengths.append(length)
        return read(self, role, name, offset, length)

    monkeypatch.setattr(Checkpoint, "read", recorded)
    consolidate(save(tmp_path / "c"), tmp_path / "g", "raw")
    assert lengths
    assert all(length is not None and length <= 100 for length in lengths)


def test_an_output_of_another_size_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "c")
    read = Checkpoint.read

    def shortened(self: Checkpoint, role: str, *arguments: Any) -> Tensor:
        tensor = read(self, role, *arguments)
        return tensor[:-1] if role == "probe" else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "read", shortened)
        with pytest.raises(ModelFolderError, match="elements, but the run recorded"):
            consolidate(source, tmp_path / "g")
