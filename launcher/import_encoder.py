"""Make a model folder of an encoder of timm with weights from elsewhere, to compare pretraining by colouring with.

Fine-tuning, probes and studies take the folder where they take a generator's. The network sees luminance alone, as a
generator does; behind it stand the same decoder and heads, drawn anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from colorgan.cli import parse, run_verb
from colorgan.errors import ColorganError
from colorgan.model_folder import Architecture, ModelConfig, save_model, source_version
from colorgan.networks import num_downsamplings
from colorgan.timm_encoder import Backbone, pretrained_encoder


class ImportSettings(BaseModel):
    """What to import."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(description="name of a convolutional network of timm, e.g. resnet50")
    weights: Path | None = Field(
        None, description="timm's or torchvision's weights of it, .safetensors or .pth; unset: timm downloads its own"
    )
    image_size: int = Field(256, description="side of the square input in pixels: 32, 64, 128, 256 or 512")
    ab_scale: Annotated[float, Field(gt=0)] = Field(128.0, description="that of the generators it is compared with")
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
    num_downsamplings(settings.image_size)  # a size that does not fit is told here
    encoder = pretrained_encoder(settings.encoder, settings.weights, settings.image_size)
    config = ModelConfig(
        kind="encoder",
        architecture=Architecture(
            image_size=settings.image_size,
            width=encoder.channels[0],
            norm="batch",
            bias_before_norm=False,
            dropout=0.0,
            encoder=settings.encoder,
        ),
        ab_scale=settings.ab_scale,
        source_version=source_version(),
        recipe=settings.model_dump(mode="json"),
    )
    save_model(settings.out, Backbone(encoder), config)
    levels = ", ".join(f"{c} at 1/{s}" for c, s in zip(encoder.channels, encoder.strides, strict=True))
    print(f"{settings.out}: {settings.encoder} for {settings.image_size}x{settings.image_size}, channels {levels}")
    print(f"Next: accelerate launch launcher/finetune.py --task classify --init {settings.out} --data.train DIR")
    return 0


if __name__ == "__main__":
    run_verb(main, ColorganError)
