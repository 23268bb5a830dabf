"""Turn a run's checkpoint into a model folder that every other command takes.

The folder holds model.safetensors and config.json; its output is compared with the run's.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError


class ConsolidateSettings(BaseModel):
    """What to consolidate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path = Field(Path("runs/pretrain"), description="run folder of a training")
    checkpoint: str | None = Field(
        None, description="name of a checkpoint in it; unset: the newest intact one"
    )
    out: Path | None = Field(
        None, description="folder to write; unset: RUN/generator, of fine-tuning RUN/model"
    )
    weights: Literal["raw", "average"] | None = Field(
        None, description="unset: the average if the run has one"
    )
    onnx: bool = Field(
        False, description="also write model.onnx, checked with onnxruntime (extra `onnx`)"
    )
    format: Literal["generator", "timm", "torchvision", "onnx", "safetensors"] = Field(
        "generator",
        description="generator: the model folder alone; others also write the encoder beside it, "
        "as timm or torchvision load it or under its own names; onnx: as --onnx",
    )
    rgb: bool = Field(
        False,
        description="with format timm or torchvision: a first convolution of three channels",
    )
    num_classes: int = Field(
        1000,
        ge=0,
        description="with format timm: classes of the untrained classifier of timm's network; 0: "
        "none",
    )

    @model_validator(mode="after")
    def _rgb_has_a_format(self) -> ConsolidateSettings:
        if self.rgb and self.format not in ("timm", "torchvision"):
            raise ValueError("rgb goes with format timm or torchvision: add --format timm")
        return self

    @property
    def exports(self) -> list[Literal["timm", "torchvision", "safetensors", "onnx"]]:
        """What is written beside the model folder."""
        asked = [] if self.format == "generator" else [self.format]
        return asked if "onnx" in asked or not self.onnx else ["onnx", *asked]


def main(argv: list[str]) -> int:
    """Consolidate; return the exit status."""
    settings = parse(
        ConsolidateSettings,
        argv,
        command=command_text("consolidate"),
        description=__doc__ or "",
        next_line=f"{command_text('finetune')} --init RUN/generator --data.train DIR",
    )

    # Torch is imported after the settings have been checked.
    from colorgan.tasks.consolidating import consolidate_run, export

    result = consolidate_run(
        settings.run,
        settings.out,
        checkpoint=settings.checkpoint,
        weights=settings.weights,
        exports=settings.exports,
        rgb=settings.rgb,
    )
    print(result.text)
    # Made from the folder, not from the checkpoint: what is exported is what others load.
    for format in settings.exports:
        print(export(result.folder, format, rgb=settings.rgb, num_classes=settings.num_classes))

    # What comes next depends on what was made: only a generator colors photos, and one that gives
    # back luminance has no colors.
    folder = quote(str(result.folder))
    if result.kind == "generator":
        data = "--data.train DIR --data.val DIR"
        print(f"Next: {command_text('finetune')} --task classify --init {folder} {data}")
        if result.has_colors:
            print(f"  or: {command_text('colorize')} --generator {folder} --out colored PHOTO...")
    else:
        print(f"Next: {command_text('evaluate')} --model {folder} --data DIR")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
