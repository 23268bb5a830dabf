"""Run a fine-tuned model on photos: labels, masks or boxes.

A classifier writes labels.json and labels.csv; a segmenter masks as PNG, and overlays; a detector
boxes.json in COCO's format, and photos with boxes drawn. Rerunning the command resumes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from shards.errors import ShardError
from shards.images.policy import MAX_PIXELS, MAX_PIXELS_LIMIT


class PredictSettings(BaseModel):
    """What to answer, about which photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="model folder, from launcher/finetune.py: RUN/model")
    out: Path = Field(description="folder for the answers; made if it does not exist")
    photos: tuple[Path, ...] = Field(
        min_length=1, description="photos of any size, folders of them, or packed folders"
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: a GPU where PyTorch finds one"
    )
    pictures: bool = Field(True, description="write overlays of masks, photos with drawn boxes")
    min_score: float = Field(
        0.3, ge=0, le=1, description="of the boxes that are drawn; boxes.json has all"
    )
    overwrite: bool = Field(False, description="start afresh in a folder with other answers")
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, le=MAX_PIXELS_LIMIT, description="photos with more pixels are refused"
    )


def main(argv: list[str]) -> int:
    """Answer every photo that can be read; return the exit status."""
    settings = parse(
        PredictSettings,
        argv,
        command=command_text("predict"),
        description=__doc__ or "",
        next_line=f"{command_text('evaluate')} --model DIR --data DIR",
        positional="photos",
        examples=(
            f"{command_text('predict')} --model runs/classify/model --out predicted photos/",
        ),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.tasks.predicting import Predicting, predict_photos

    predicting = Predicting(
        out=settings.out,
        pictures=settings.pictures,
        min_score=settings.min_score,
        max_pixels=settings.max_pixels,
        device=settings.device,
        overwrite=settings.overwrite,
    )
    print(predict_photos(settings.model, settings.photos, predicting))
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
