"""Make a model folder from an encoder of timm, to compare pretraining by coloring with.

Fine-tuning, probes and studies take the folder like a generator's. The network sees luminance only,
as a generator does, with the same heads and an untrained decoder of the generator's kind.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError


class ImportSettings(BaseModel):
    """What to import."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(description="name of a convolutional network of timm, e.g. resnet50")
    weights: Path | None = Field(
        None,
        description="its weights, timm's or torchvision's; unset: timm downloads its own",
    )
    like: Path = Field(
        description="generator folder to compare with; it sets the input and the decoder"
    )
    out: Path = Field(description="model folder to write")


def main(argv: list[str]) -> int:
    """Import; return the exit status."""
    settings = parse(
        ImportSettings,
        argv,
        command=command_text("import_encoder"),
        description=__doc__ or "",
        next_line=f"{command_text('finetune')} --init OUT --data.train DIR",
    )

    # Torch is imported after the settings have been checked.
    from colorgan.tasks.encoder_import import import_encoder

    # Kept in the folder: where its weights are from can be read later.
    recipe = settings.model_dump(mode="json")
    out, like = settings.out, settings.like
    print(import_encoder(settings.encoder, settings.weights, like=like, out=out, recipe=recipe))

    start = f"--task classify --init {quote(str(out))}"
    print(f"Next: {command_text('finetune')} {start} --data.train DIR")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
