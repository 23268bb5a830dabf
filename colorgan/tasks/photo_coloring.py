"""Color a user's photos with a generator, each at its own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import nn

from colorgan.data import ColoringTables, PictureError, color_rows
from colorgan.distributed.ranks import DeviceName, chosen_device
from colorgan.errors import UsageError
from colorgan.files import what_is
from colorgan.models.colorizing import PhotoRows, chroma_strips
from colorgan.models.model_config import ModelConfig, check_colors
from colorgan.models.model_folder import load_model
from colorgan.models.modes import set_inference
from colorgan.tasks.model_card import DRAWN, on_drawn_shapes
from colorgan.tasks.photo_files import OutputFormat, PhotoFile, list_photos, read_photo, write_photo


@dataclass(frozen=True)
class PhotoColoring:
    """How photos are colored and written.

    Attributes:
        out: Folder for the colored copy of each photo; made if it does not exist.
        side_by_side: Write the grey photo beside the colored one.
        inference: None for what the generator's config says.
        max_pixels: Photos with more pixels are refused.
        device: "auto" takes a GPU where PyTorch finds one.
        overwrite: Replace files in `out` that have a photo's name.
        output: Format of the colored photos.
    """

    out: Path
    side_by_side: bool
    inference: Literal["running", "paper"] | None
    max_pixels: int
    device: DeviceName = "auto"
    overwrite: bool = False
    output: OutputFormat = "png"


def color_photos(generator: Path, photos: Sequence[Path], coloring: PhotoColoring) -> str:
    """Color every photo that can be read; return lines about it.

    Raises:
        UsageError: A photo would be overwritten, or some could not be colored (the others are).
        ModelFolderError: `generator` is not a generator folder.
    """
    if held := what_is(coloring.out):
        raise UsageError(f"{coloring.out} holds {held}: choose another --out for photos")
    # Before the network is loaded: a name that clashes is found before anything is written.
    files = list_photos(photos, coloring.out, coloring.output, overwrite=coloring.overwrite)
    network, config = load_model(generator, "generator")
    check_colors(config, generator)
    set_inference(network, coloring.inference or config.inference)
    network.to(chosen_device(coloring.device))

    coloring.out.mkdir(parents=True, exist_ok=True)
    failures = []
    for file in track(files, "coloring", transient=True):
        try:
            _write_colored(file, network, config, coloring)
        # One broken photo of a thousand must not cost the others; all failures are listed at the
        # end.
        except (PictureError, OSError) as error:
            failures.append(f"{file.source}: {error}")

    if failures:
        count = f"{len(files) - len(failures)} of {len(files)} photos colored"
        # An error, though the rest is done: a script must see that its photos are incomplete.
        raise UsageError(f"{coloring.out}: {count}; not colored:\n  " + "\n  ".join(failures))
    text = f"{coloring.out}: {len(files)} of {len(files)} photos colored"
    return f"{text}\nNote: {DRAWN}" if on_drawn_shapes(config) else text


def _write_colored(
    file: PhotoFile, generator: nn.Module, config: ModelConfig, coloring: PhotoColoring
) -> None:
    """Color one photo and write it, whole or not at all."""
    photo = read_photo(file.source, coloring.max_pixels)
    colored = color_image(generator, photo.image, config, side_by_side=coloring.side_by_side)
    write_photo(colored, photo, file.target, coloring.output)


def color_image(
    generator: nn.Module, image: Image.Image, config: ModelConfig, *, side_by_side: bool
) -> Image.Image:
    """Return the colored photo; without `side_by_side` it is `image` itself, overwritten.

    One image is held in memory, no float copy of it: 100 megapixels take 400 MB.

    Args:
        generator: On any device.
        image: Of mode RGB, or RGBA, whose transparency stays; side by side it is left out.
        config: Of the generator.
        side_by_side: Return the grey photo beside the colored one, as a new image.
    """
    width, height = image.size
    result = Image.new("RGB", (2 * width, height)) if side_by_side else image

    def read(top: int, bottom: int) -> NDArray[np.uint8]:
        # A strip is read before it is overwritten: strips do not overlap in what they write.
        rows = image.crop((0, top, width, bottom))
        return np.array(rows if rows.mode == "RGB" else rows.convert("RGB"))

    def write(rows_HW3: NDArray[np.uint8], left: int, top: int) -> None:
        rows = Image.fromarray(rows_HW3)
        if result.mode == "RGBA":
            box = (left, top, left + rows.width, top + rows.height)
            rows.putalpha(result.crop(box).getchannel("A"))
        result.paste(rows, (left, top))

    tables = ColoringTables()
    rows = PhotoRows(
        height, width, lambda top, bottom: torch.from_numpy(read(top, bottom)).permute(2, 0, 1)
    )
    for strip in chroma_strips(
        generator, rows, image_size=config.architecture.image_size, ab_scale=config.ab_scale
    ):
        chroma_2HW = strip.chroma_12HW[0].cpu().numpy()
        rows_HW3 = read(strip.top, strip.bottom)
        if side_by_side:
            # Grey by the same pass, so that both halves have the same luminance.
            grey_HW3 = np.empty_like(rows_HW3)
            color_rows(rows_HW3, np.zeros_like(chroma_2HW), grey_HW3, config.ab_scale, tables)
            write(grey_HW3, 0, strip.top)

        color_rows(rows_HW3, chroma_2HW, rows_HW3, config.ab_scale, tables)
        write(rows_HW3, width if side_by_side else 0, strip.top)
    return result
