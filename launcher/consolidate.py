"""Turn a run's checkpoint into one generator folder: model.safetensors and config.json, checked against the run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from colorgan.checkpoints.checkpoint import latest_checkpoint, open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError, ColorganError
from colorgan.models.weights_file import WEIGHTS


class ConsolidateSettings(BaseModel):
    """What to consolidate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path = Field(Path("runs/pretrain"), description="run folder of pretraining")
    checkpoint: str | None = Field(
        None, description="name of a checkpoint in it; unset: the newest intact one"
    )
    out: Path | None = Field(None, description="folder to write; unset: RUN/generator")
    weights: Literal["raw", "average"] | None = Field(
        None, description="unset: the average where there is one"
    )
    onnx: bool = Field(
        False, description="also write model.onnx, checked with onnxruntime (extra `onnx`)"
    )


def main(argv: list[str]) -> int:
    """Consolidate; return the exit status."""
    settings = parse(
        ConsolidateSettings,
        argv,
        verb="python launcher/consolidate.py",
        description=__doc__ or "",
        next_line="accelerate launch launcher/finetune.py --task classify --init RUN/generator --data.train DIR",
    )
    folder = settings.run / "checkpoints"
    if settings.checkpoint:
        found = open_checkpoint(folder / settings.checkpoint)
    else:
        newest = latest_checkpoint(folder, Ranks.single(), print)
        if newest is None:
            raise CheckpointError(
                f"{folder} holds no checkpoint: is {settings.run} the --run of a training?"
            )
        found = newest
    out = settings.out or settings.run / "generator"
    config = consolidate(found, out, settings.weights)
    size = (out / WEIGHTS).stat().st_size / 2**20
    print(
        f"{out}: {config.kind} {config.architecture.image_size}x{config.architecture.image_size} of width "
        f"{config.architecture.width}, {config.weights} weights after {config.images_seen:,} images, {size:.1f} MiB; "
        "its output equals the run's"
    )
    if settings.onnx:
        from colorgan.models.generator import check_onnx, export_onnx  # seconds to import

        export_onnx(out, out / "model.onnx")
        difference = check_onnx(out / "model.onnx", out)
        print(
            f"{out / 'model.onnx'}: luminance to chroma, differs from the network by {difference:.1g} at most"
        )
    print(
        f"Next: accelerate launch launcher/finetune.py --task classify --init {out} --data.train DIR --data.val DIR"
    )
    print(f"  or: python launcher/colorize.py --generator {out} --out coloured PHOTO...")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
