"""Turn a run's checkpoint into a model folder that every other command takes.

The folder holds model.safetensors and config.json; its output is compared with the run's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
    from colorgan.tasks.consolidating import consolidate_run, export_to_onnx

    result = consolidate_run(
        settings.run, settings.out, checkpoint=settings.checkpoint, weights=settings.weights
    )
    print(result.text)
    if settings.onnx:
        print(export_to_onnx(result.folder))

    # What comes next depends on what was made: only a generator colors photos.
    if result.kind == "generator":
        data = "--data.train DIR --data.val DIR"
        print(f"Next: {command_text('finetune')} --task classify --init {result.folder} {data}")
        print(
            f"  or: {command_text('colorize')} --generator {result.folder} --out colored PHOTO..."
        )
    else:
        print(f"Next: {command_text('evaluate')} --model {result.folder} --data DIR")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
