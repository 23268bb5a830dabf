"""The network fine-tuning begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from colorgan.config.recipe import FinetuneRecipe
from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.model_folder import (
    Architecture,
    ModelConfig,
    build_model,
    check_inference,
    load_model,
    weights_digest,
)
from colorgan.models.modes import initialise
from colorgan.models.unet import Encoder, num_downsamplings

# The layers that a task adds to a generator: all others are the pretrained features.
NEW_LAYERS = {"classify": "head.", "segment": "decoder.output.", "detect": "head."}


KINDS: dict[str, Literal["classifier", "segmenter", "detector"]] = {
    "classify": "classifier",
    "segment": "segmenter",
    "detect": "detector",
}


def initial_model(
    recipe: FinetuneRecipe, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> tuple[nn.Module, ModelConfig]:
    """Return the network to fine-tune, on the CPU, and its config: drawn from the seed, or from a folder.

    Raises:
        ModelFolderError: `init` is no generator's or encoder's folder, or the recipe asks for other sizes than it has.
        ArchitectureError: the image size does not fit the U-Net.
        UsageError: the set has no classes.
    """
    kind = KINDS[recipe.task]
    if not classes:
        raise UsageError(
            f"the training set has no classes to {recipe.task}: pack a labelled corpus (voc, coco)"
        )
    num_outputs = len(classes) + (kind == "segmenter")
    pretrained, source = None, None
    if recipe.init != "scratch":
        pretrained, source = load_model(Path(recipe.init), "generator", "encoder")
        check_inference(recipe.inference, source.architecture, recipe.init)
    network = recipe.network
    num_downsamplings(network.image_size)  # a size that does not fit is told here
    shared = (
        source.architecture.model_dump() if source else network.model_dump(exclude={"ab_scale"})
    )
    if source:
        _check_network(recipe, source)
    config = ModelConfig(
        kind=kind,
        architecture=Architecture(
            **{**shared, "num_outputs": num_outputs, "head_width": recipe.head_width}
        ),
        ab_scale=source.ab_scale if source else network.ab_scale,
        inference=recipe.inference,
        classes=classes,
        palette=palette if kind != "classifier" else (),
        void=recipe.void,
        init_digest=weights_digest(Path(recipe.init)) if source else "",
    )
    model = build_model(config)
    initialise(model, recipe.seed)
    if pretrained is not None:
        _take_features(model, pretrained, new_layers(model, recipe.task))
    return model, config


def new_layers(model: nn.Module, task: str) -> tuple[str, ...]:
    """Return how the names of the layers begin that are not pretrained: behind an encoder from elsewhere, all."""
    return (NEW_LAYERS[task],) if isinstance(model.encoder, Encoder) else ("decoder.", "head.")


def _check_network(recipe: FinetuneRecipe, source: ModelConfig) -> None:
    have = {**source.architecture.model_dump(), "ab_scale": source.ab_scale}
    for key in sorted(recipe.network.model_fields_set):
        asked = getattr(recipe.network, key)
        if asked != have[key]:
            raise ModelFolderError(
                f"network.{key} is {asked} but {recipe.init} has {have[key]}: leave network.{key} out"
            )


def _take_features(model: nn.Module, pretrained: nn.Module, new_layers: tuple[str, ...]) -> None:
    """Copy every weight and statistic but those of the new layers."""
    theirs = pretrained.state_dict()
    ours = model.state_dict()
    model.load_state_dict(
        {name: ours[name] if name.startswith(new_layers) else theirs[name] for name in ours}
    )
