"""Color a user's photos with a generator, each at its own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import nn

from colorgan.data import PictureError, decode_upright
from colorgan.errors import UsageError
from colorgan.evaluation.picture_grids import to_uint8_HWC
from colorgan.models.colorizing import color_photo
from colorgan.models.model_folder import ModelConfig, load_model
from colorgan.models.modes import set_inference


@dataclass(frozen=True)
class PhotoColoring:
    """How photos are colored and written.

    Attributes:
        out: Folder for <name>.png of each photo; made if it does not exist.
        side_by_side: Write the grey photo beside the colored one.
        inference: None for what the generator's config says.
        max_pixels: Photos with more pixels are refused.
    """

    out: Path
    side_by_side: bool
    inference: Literal["running", "paper"] | None
    max_pixels: int


def color_photos(generator: Path, photos: Sequence[Path], coloring: PhotoColoring) -> str:
    """Color every photo that can be read; return a line about it.

    Raises:
        UsageError: A photo would be overwritten, or some could not be colored (the others are).
        ModelFolderError: `generator` is not a generator folder.
    """
    _check_names(photos, coloring.out)
    network, config = load_model(generator, "generator")
    set_inference(network, coloring.inference or config.inference)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    coloring.out.mkdir(parents=True, exist_ok=True)
    failures = []
    for photo in track(photos, "coloring", transient=True):
        try:
            _write_colored(photo, network, config, device, coloring)
        except (PictureError, OSError) as error:
            failures.append(f"{photo}: {error}")

    if failures:
        count = f"{len(photos) - len(failures)} of {len(photos)} photos colored"
        raise UsageError(f"{coloring.out}: {count}; not colored:\n  " + "\n  ".join(failures))
    return f"{coloring.out}: {len(photos)} of {len(photos)} photos colored"


def _check_names(photos: Sequence[Path], out: Path) -> None:
    names = [photo.stem for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two photos would be written as {twice[0]}.png: use a different --out for each"
        )

    for photo in photos:
        if (out / f"{photo.stem}.png").resolve() == photo.resolve():
            raise UsageError(
                f"{photo} would be overwritten by its colored copy: choose another --out"
            )


def _write_colored(
    photo: Path,
    generator: nn.Module,
    config: ModelConfig,
    device: torch.device,
    coloring: PhotoColoring,
) -> None:
    """Color one photo and write it, whole or not at all."""
    if not photo.is_file():
        raise PictureError("a folder: name the photos" if photo.is_dir() else "no such file")

    pixels_HW3 = decode_upright(photo.read_bytes(), coloring.max_pixels)
    grey_3HW, colored_3HW = color_photo(
        generator,
        torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1).to(device),
        image_size=config.architecture.image_size,
        ab_scale=config.ab_scale,
    )
    image = to_uint8_HWC(colored_3HW)
    if coloring.side_by_side:
        image = np.concatenate([to_uint8_HWC(grey_3HW), image], axis=1)

    partial = coloring.out / f".{photo.stem}.partial"
    try:
        Image.fromarray(image).save(partial, format="PNG")
        partial.replace(coloring.out / f"{photo.stem}.png")
    finally:
        partial.unlink(missing_ok=True)
