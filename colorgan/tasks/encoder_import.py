"""A model folder from an encoder of timm, with the input of a generator to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colorgan.errors import ModelFolderError
from colorgan.models.model_config import ModelConfig, read_config
from colorgan.models.model_folder import save_model
from colorgan.models.timm_encoder import Backbone, pretrained_encoder
from colorgan.runs.provenance import source_version


def import_encoder(
    name: str, weights: Path | None, *, like: Path, out: Path, recipe: dict[str, Any]
) -> str:
    """Write the model folder; return a line about it.

    Args:
        name: A convolutional network of timm.
        weights: Its weights, .safetensors or .pth; None to download timm's own.
        like: Generator folder whose input and decoder the model gets.
        out: Folder to write.
        recipe: The settings, kept in the folder's config.

    Raises:
        ModelFolderError: `like` is not a generator folder.
    """
    generator = read_config(like)
    if generator.kind != "generator":
        raise ModelFolderError(f"--like {like} holds a {generator.kind}; a generator is needed")

    # A comparison is fair at equal input size: timm's own default would give one side more pixels.
    side = generator.architecture.image_size
    encoder = pretrained_encoder(name, weights, side)

    # The decoder stays the generator's; its widths follow from the encoder's channels.
    own = {"width": encoder.channels[0], "encoder": name, "encoder_input": "photo"}
    config = ModelConfig(
        kind="encoder",
        architecture=generator.architecture.model_copy(update=own),
        ab_scale=generator.ab_scale,
        source_version=source_version(),
        recipe=recipe,
    )
    save_model(out, Backbone(encoder), config)

    levels = [
        f"{channels} at 1/{stride}"
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    return f"{out}: {name} for {side}x{side}, channels {', '.join(levels)}"
