"""Color photos of any size with a generator.

Writes <name>.png (or .jpg) for each photo at its own size; of a folder, for every photo below it:
links are followed, hidden files and those below --out are not meant, and files of other kinds are
counted. The luminance is kept, as are transparency and EXIF; the photo's own colors, if any, are
not used.
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


class ColorizeSettings(BaseModel):
    """What to color."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Path = Field(description="generator folder, from launcher/consolidate.py")
    out: Path = Field(description="folder for the colored photos; made if it does not exist")
    photos: tuple[Path, ...] = Field(
        min_length=1, description="photos of any size, or folders of them: JPEG, PNG, TIFF, ..."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: a GPU where PyTorch finds one"
    )
    format: Literal["png", "jpeg"] = Field("png", description="of the colored photos")
    overwrite: bool = Field(False, description="replace photos of the same name in out")
    beside: bool = Field(False, description="write grey and colored side by side")
    inference: Literal["running", "paper"] | None = Field(
        None,
        description="paper: batch statistics and dropout stay on; unset: the generator's own",
    )
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, le=MAX_PIXELS_LIMIT, description="photos with more pixels are refused"
    )


def main(argv: list[str]) -> int:
    """Color every photo that can be read; return the exit status."""
    settings = parse(
        ColorizeSettings,
        argv,
        command=command_text("colorize"),
        description=__doc__ or "",
        next_line=f"{command_text('evaluate')} --model DIR --data DIR",
        # Bare words are photos, so that a shell's `*.jpg` works.
        positional="photos",
        examples=(
            f"{command_text('colorize')} --generator runs/pretrain/generator --out colored *.jpg",
        ),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.tasks.photo_coloring import PhotoColoring, color_photos

    coloring = PhotoColoring(
        out=settings.out,
        side_by_side=settings.beside,
        inference=settings.inference,
        max_pixels=settings.max_pixels,
        device=settings.device,
        overwrite=settings.overwrite,
        output=settings.format,
    )
    print(color_photos(settings.generator, settings.photos, coloring))
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
