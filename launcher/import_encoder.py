"""Make a model folder of an encoder of timm with weights from elsewhere, to compare pretraining by colouring with.

Fine-tuning, probes and studies take the folder where they take a generator's. The network sees luminance alone, as a
generator does; behind it stand the same heads, and a decoder built as the generator's is, drawn anew.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError, ModelFolderError
from colorgan.models.model_folder import ModelConfig, read_config, save_model
from colorgan.models.timm_encoder import Backbone, pretrained_encoder
from colorgan.runs.provenance import source_version


class ImportSettings(BaseModel):
    """What to import."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(description="name of a convolutional network of timm, e.g. resnet50")
    weights: Path | None = Field(
        None,
        description="timm's or torchvision's weights of it, .safetensors or .pth; unset: timm downloads its own",
    )
    like: Path = Field(
        description="generator folder to compare it with: input and decoder are as there"
    )
    out: Path = Field(description="model folder to write")


def main(argv: list[str]) -> int:
    """Import; return the exit status."""
    settings = parse(
        ImportSettings,
        argv,
        verb="python launcher/import_encoder.py",
        description=__doc__ or "",
        next_line="accelerate launch launcher/finetune.py --init OUT --data.train DIR",
    )
    generator = read_config(settings.like)
    if generator.kind != "generator":
        raise ModelFolderError(
            f"--like {settings.like} holds a {generator.kind}, a generator is needed"
        )
    size = generator.architecture.image_size
    encoder = pretrained_encoder(settings.encoder, settings.weights, size)
    own = {"width": encoder.channels[0], "encoder": settings.encoder}
    config = ModelConfig(
        kind="encoder",
        architecture=generator.architecture.model_copy(update=own),
        ab_scale=generator.ab_scale,
        source_version=source_version(),
        recipe=settings.model_dump(mode="json"),
    )
    save_model(settings.out, Backbone(encoder), config)
    levels = ", ".join(
        f"{c} at 1/{s}" for c, s in zip(encoder.channels, encoder.strides, strict=True)
    )
    print(f"{settings.out}: {settings.encoder} for {size}x{size}, channels {levels}")
    print(
        f"Next: accelerate launch launcher/finetune.py --task classify --init {settings.out} --data.train DIR"
    )
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
