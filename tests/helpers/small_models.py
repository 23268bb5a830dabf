"""Small networks with weights of a seed, and a generator's folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model, write_model
from colorgan.models.modes import initialise

SEED = 7


def small_model(kind: str, image_size: int) -> nn.Module:
    """Return a network of a kind, of width 8 and three classes, in evaluation mode."""
    architecture = Architecture(
        image_size=image_size,
        width=8,
        norm="batch",
        bias_before_norm=True,
        dropout=0.5,
        num_outputs={"generator": 2, "segmenter": 4}.get(kind, 3),
    )
    classes = () if kind == "generator" else ("a", "b", "c")
    config = ModelConfig(kind=kind, architecture=architecture, ab_scale=128.0, classes=classes)
    model = build_model(config)
    initialise(model, SEED)
    return model.eval()


def write_generator(folder: Path) -> Path:
    """Write a generator for 32x32 pixels, of width 4, into a new folder; return it."""
    architecture = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.0
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=128.0)
    model = build_model(config)
    initialise(model, SEED)
    folder.mkdir()
    write_model(folder, model, config)
    return folder
