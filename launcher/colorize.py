"""Colour photos of any size with a generator: `python launcher/colorize.py --generator DIR --out DIR PHOTO...`.

Writes <name>.png for each photo, at its own size: its luminance is kept, its colours (if any) are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import track
from torch import nn

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError, UsageError
from colorgan.evaluation.picture_grids import to_uint8_HWC
from colorgan.models.colorizing import color_photo
from colorgan.models.model_folder import ModelConfig, load_model
from colorgan.models.modes import set_inference
from shards.errors import PictureError, ShardError
from shards.images.conversion import decode_upright


class ColorizeSettings(BaseModel):
    """What to colour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Path = Field(description="generator folder, from launcher/consolidate.py")
    out: Path = Field(description="folder to write the coloured photos to; made if it is not there")
    photos: tuple[Path, ...] = Field(
        min_length=1, description="photos: JPEG, PNG, WebP, TIFF, ..., of any size"
    )
    beside: bool = Field(False, description="write grey and coloured side by side")
    inference: Literal["running", "paper"] | None = Field(
        None,
        description="paper: batch statistics and dropout stay on; unset: as the generator says",
    )
    max_pixels: Annotated[int, Field(gt=0, le=1_000_000_000)] = Field(
        100_000_000, description="photos with more pixels are refused"
    )


def main(argv: list[str]) -> int:
    """Colour every photo that can be read; return 2 when one could not."""
    settings = parse(
        ColorizeSettings,
        argv,
        verb="python launcher/colorize.py",
        description=__doc__ or "",
        next_line="accelerate launch launcher/evaluate.py --model DIR --data DIR",
        positional="photos",
    )
    names = [photo.stem for photo in settings.photos]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two photos would be written as {twice[0]}.png: colour them into different --out folders"
        )
    for photo in settings.photos:
        if (settings.out / f"{photo.stem}.png").resolve() == photo.resolve():
            raise UsageError(
                f"{photo} would be overwritten by its coloured copy: choose another --out"
            )
    generator, config = load_model(settings.generator, "generator")
    set_inference(generator, settings.inference or config.inference)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator.to(device)
    settings.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for photo in track(settings.photos, "colouring", transient=True):
        try:
            write_colored(settings, photo, generator, config, device)
        except (PictureError, OSError) as error:
            failed.append(f"{photo}: {error}")
    print(
        f"{settings.out}: {len(settings.photos) - len(failed)} of {len(settings.photos)} photos coloured"
    )
    if failed:
        raise UsageError("not coloured:\n  " + "\n  ".join(failed))
    return 0


def write_colored(
    settings: ColorizeSettings,
    photo: Path,
    generator: nn.Module,
    config: ModelConfig,
    device: torch.device,
) -> None:
    """Colour one photo and write it, whole or not at all."""
    if not photo.is_file():
        raise PictureError(
            "a folder: name the photos" if photo.is_dir() else "there is no such file"
        )
    pixels_HW3 = decode_upright(photo.read_bytes(), settings.max_pixels)
    grey_3HW, colored_3HW = color_photo(
        generator,
        torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).to(device),
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
    )
    picture = to_uint8_HWC(colored_3HW)
    if settings.beside:
        picture = np.concatenate([to_uint8_HWC(grey_3HW), picture], axis=1)
    partial = settings.out / f".{photo.stem}.partial"
    try:
        Image.fromarray(picture).save(partial, format="PNG")
        partial.replace(settings.out / f"{photo.stem}.png")
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
