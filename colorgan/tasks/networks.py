"""From a recipe's `network` to an architecture, and the weights that its encoder starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from colorgan.config.recipe import NetworkRecipe
from colorgan.errors import ArchitectureError
from colorgan.models.backbones import check_encoder, load_backbone_weights
from colorgan.models.model_config import UNET, Architecture
from colorgan.models.unet import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, encoder_of, num_downsamplings

# Keys of `network` that are no arguments of a network.
NOT_SIZES = {"ab_scale", "encoder_weights"}


def architecture_of(recipe: NetworkRecipe, **others: Any) -> Architecture:
    """Return the architecture of a recipe's network.

    Args:
        recipe: Its encoder sees luminance.
        others: Fields of the architecture that are no keys of `network`.

    Raises:
        ArchitectureError: The image size does not fit the U-Net, or is one that no network takes.
    """
    size = recipe.image_size
    if recipe.encoder == UNET:
        num_downsamplings(size)
    elif not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE:
        raise ArchitectureError(
            f"image size {size} is out of range: use {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
        )
    sizes = recipe.model_dump(exclude=NOT_SIZES)
    return Architecture(**{**sizes, "encoder_input": "luminance", **others})


def start_encoder(model: nn.Module, image_size: int, weights: Path | None) -> None:
    """Check a drawn model's encoder at an image size, and load its weights from a file.

    Args:
        model: A network with an encoder, on the CPU.
        image_size: Side of the square input.
        weights: The file; None for those that were drawn.

    Raises:
        ModelFolderError: The backbone does not take this image size, or the file's weights.
        ArchitectureError: A part of the backbone would never learn, or weights are for the U-Net.
    """
    encoder = encoder_of(model)
    check_encoder(encoder, image_size)
    if weights is not None:
        load_backbone_weights(encoder, weights, image_size)
