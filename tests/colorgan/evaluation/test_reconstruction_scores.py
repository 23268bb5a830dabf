"""Scores of the control that reconstructs luminance, against numpy, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy import ToyLoader, toy_recipe
from torch import nn

from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError
from colorgan.evaluation.reconstruction_scores import score_reconstruction
from colorgan.models.generator import Generator
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from colorgan.tasks.colorization import generator_config


class Darker(nn.Module):
    """A generator whose luminance is 5 units too low everywhere."""

    def forward(self, luminance_B1HW: torch.Tensor) -> torch.Tensor:
        return luminance_B1HW - 0.1


def test_scores_are_in_units_of_l():
    batches = [ToyLoader(4, 4).batch(range(first, first + 4)) for first in (0, 4)]
    scores = score_reconstruction(Darker(), batches, Ranks.single())

    lightness = np.concatenate([each.lab_B3HW[:, 0].double().numpy() for each in batches]) * 50
    flat = np.abs(lightness - lightness.mean(axis=(1, 2), keepdims=True)).mean()
    assert scores["luminance_l1"] == pytest.approx(5.0, abs=1e-4)
    assert scores["flat_luminance_l1"] == pytest.approx(flat, abs=1e-4)
    assert scores["images"] == 8


def test_it_is_no_generator_of_colors(tmp_path: Path):
    config = generator_config(toy_recipe(tmp_path, loss={"target": "luminance", "gan": "none"}))
    network = build_model(config)
    initialise(network, 0)
    save_model(tmp_path / "generator", network, config)
    with pytest.raises(ModelFolderError, match="it colors nothing; name one"):
        Generator.from_pretrained(tmp_path / "generator")
