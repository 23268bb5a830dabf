"""The network that fine-tuning begins with.

Drawn from the seed, or with a generator's or encoder's features.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from colorgan.config.recipe import SCRATCH, FinetuneRecipe
from colorgan.errors import ModelFolderError, UsageError
from colorgan.evaluation.downstream import TASKS, DownstreamTask
from colorgan.models.model_config import (
    Architecture,
    ModelConfig,
    check_inference,
    check_input_size,
    weights_digest,
)
from colorgan.models.model_folder import build_model, load_model
from colorgan.models.modes import initialise
from colorgan.models.unet import encoder_of
from colorgan.tasks.networks import architecture_of, start_encoder


def initial_model(
    recipe: FinetuneRecipe, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> tuple[nn.Module, ModelConfig]:
    """Return the network to fine-tune, on the CPU, and its config.

    Args:
        recipe: Its `init` names the folder whose features are taken over.
        classes: Of the training set.
        palette: Colors of the classes, for pictures.

    Raises:
        ModelFolderError: `init` is not a generator's or encoder's folder, or the recipe asks for
            other sizes.
        ArchitectureError: The image size does not fit the U-Net.
        UsageError: The set has no classes.
    """
    task = TASKS[recipe.task]
    if not classes:
        raise UsageError(
            f"the training set has no classes to {recipe.task}: pack a labelled corpus (voc, coco)"
        )

    num_outputs = task.num_outputs(len(classes))
    if recipe.init == SCRATCH:
        architecture = architecture_of(
            recipe.network, num_outputs=num_outputs, head_width=recipe.head_width
        )
        config = _config(recipe, task, architecture, classes, palette)
        model = build_model(config)
        initialise(model, recipe.seed)
        start_encoder(model, recipe.network.image_size, recipe.network.encoder_weights)
        return model, config

    folder = Path(recipe.init)
    pretrained, source = load_model(folder, "generator", "encoder")
    check_inference(recipe.inference, source.architecture, recipe.init)
    _check_network(recipe, source)
    # Not of the recipe's network: its size may be one that only a network from a folder takes.
    architecture = source.architecture.model_copy(
        update={"num_outputs": num_outputs, "head_width": recipe.head_width}
    )
    config = _config(recipe, task, architecture, classes, palette).model_copy(
        update={
            "ab_scale": source.ab_scale,
            "input_size": _input_size(recipe, source),
            # Of the bytes, not the path: a comparison can prove which features a model began with.
            "init_digest": weights_digest(folder),
        }
    )
    model = build_model(config)
    initialise(model, recipe.seed)
    # After the draw of all layers, so that new ones start alike whatever the features are.
    _take_features(model, pretrained, new_layers(model, task))
    return model, config


def _config(
    recipe: FinetuneRecipe,
    task: DownstreamTask,
    architecture: Architecture,
    classes: tuple[str, ...],
    palette: tuple[tuple[int, int, int], ...],
) -> ModelConfig:
    """Return the config of a network that the recipe's task trains."""
    return ModelConfig(
        kind=task.kind,
        architecture=architecture,
        ab_scale=recipe.network.ab_scale,
        inference=recipe.inference,
        classes=classes,
        palette=palette if task.has_palette else (),
        void=recipe.void,
        fit=recipe.fit,
    )


def new_layers(model: nn.Module, task: DownstreamTask) -> tuple[str, ...]:
    """Return how the names of the layers begin that are not pretrained.

    Behind an encoder from elsewhere, all.
    """
    # Only a generator's encoder comes with a decoder.
    return (task.new_layers,) if encoder_of(model).sees_luminance else ("decoder.", "head.")


def _input_size(recipe: FinetuneRecipe, source: ModelConfig) -> int | None:
    """Return the side of the pictures where it is not the one of pretraining.

    Raises:
        UsageError: The network cannot have it.
    """
    size, pretrained_size = recipe.network.image_size, source.architecture.image_size
    if "image_size" not in recipe.network.model_fields_set or size == pretrained_size:
        return None

    check_input_size(size, recipe.init)
    return size


def _check_network(recipe: FinetuneRecipe, source: ModelConfig) -> None:
    """Refuse a recipe that asks for another network than the folder holds."""
    if recipe.network.encoder_weights is not None:
        raise ModelFolderError(
            f"network.encoder_weights and init {recipe.init} both name weights: leave one out"
        )
    # Only what the user wrote is compared; defaults give way to the folder's network.
    have = {**source.architecture.model_dump(), "ab_scale": source.ab_scale}
    have["encoder_weights"] = None
    # Pictures of another size run through the same weights.
    for key in sorted(recipe.network.model_fields_set - {"image_size"}):
        asked = getattr(recipe.network, key)
        if asked != have[key]:
            raise ModelFolderError(
                f"network.{key} is {asked} but {recipe.init} has {have[key]}: leave network.{key} "
                "out"
            )


def _take_features(model: nn.Module, pretrained: nn.Module, new_layers: tuple[str, ...]) -> None:
    """Copy every weight and statistic but those of the new layers."""
    weights = model.state_dict()
    features = pretrained.state_dict()
    for name in weights:
        if not name.startswith(new_layers):
            weights[name] = features[name]
    # Strict over the whole dictionary: a name that fits neither side is an error, not a skipped
    # layer.
    model.load_state_dict(weights)
