"""How well a generator colours: scores of held-out pictures beside those of no colour at all, and the picture grid.

Scores are computed per image on float sRGB in [0, 1] after Lab -> RGB, at the network's size, and averaged in the order
of the images, so that neither batch size nor the number of ranks enters (Treneska et al. 2022, Table 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.color import denormalise_lab_B3HW, lab_to_rgb_B3HW, normalise_lab_B3HW, rgb_to_lab_B3HW
from colorgan.distributed import Ranks
from colorgan.errors import TrainingError
from colorgan.metrics import chroma_l1_B, colourfulness_B, psnr_B, ssim_B
from colorgan.networks import evaluating, set_dropout_keys
from colorgan.objectives import dropout_keys
from colorgan.pictures import colour_grid
from colorgan.training import Batch

# One row an image. "grey" is the baseline that leaves ab = 0; chroma_l1 is in Lab units.
COLUMNS = (
    *("psnr", "ssim", "chroma_l1", "colourfulness"),
    *("grey_psnr", "grey_ssim", "grey_chroma_l1", "original_colourfulness"),
)
MAX_PSNR_DB = 100.0


@dataclass
class Coloured:
    """Scores of one rank's images, and the pictures of the first ones."""

    sample_ids: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    pictures: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # grey, coloured, original; 3HW


def colour_normalised(generator: nn.Module, luminance_B1HW: Tensor, autocast: torch.autocast | None = None) -> Tensor:
    """Return the generator's normalised chroma (B, 2, S, S) in float32, without gradients."""
    with torch.inference_mode():
        if autocast is None:
            out: Tensor = generator(luminance_B1HW)
        else:
            with autocast:
                out = generator(luminance_B1HW)
    return out.float()


def to_rgb(luminance_B1HW: Tensor, chroma_B2HW: Tensor, ab_scale: float) -> Tensor:
    """Return sRGB in [0, 1], float32, of normalised luminance and chroma."""
    lab_B3HW = torch.cat([luminance_B1HW.float(), chroma_B2HW.float()], dim=1)
    return lab_to_rgb_B3HW(denormalise_lab_B3HW(lab_B3HW, ab_scale))


def colour_photo(
    generator: nn.Module, photo_3HW: Tensor, *, image_size: int, ab_scale: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Colour a photo of any size: chroma at the network's size, luminance at the photo's own.

    The photo's luminance is squashed to the network's square, the chroma that comes out is brought back to the photo's
    size (bicubic, antialiased) and joined with the full-resolution luminance.

    Args:
        photo_3HW: uint8 sRGB; its own colours are not used.

    Returns:
        grey and coloured photo, float32 sRGB in [0, 1], 3HW.
    """
    rgb_13HW = photo_3HW[None].float() / 255.0
    luminance_11HW = normalise_lab_B3HW(rgb_to_lab_B3HW(rgb_13HW), ab_scale)[:, :1].float()
    small_B3HW = _resized(rgb_13HW, (image_size, image_size)).clamp(0.0, 1.0)
    small_luminance = normalise_lab_B3HW(rgb_to_lab_B3HW(small_B3HW), ab_scale)[:, :1].float()
    set_dropout_keys(generator, dropout_keys(seed, torch.zeros(1, dtype=torch.int64)))
    with evaluating(generator):
        chroma = colour_normalised(generator, small_luminance)
    height, width = photo_3HW.shape[-2:]
    chroma_12HW = _resized(chroma, (height, width)).clamp(-1.0, 1.0)
    grey = to_rgb(luminance_11HW, torch.zeros_like(chroma_12HW), ab_scale)
    return grey[0], to_rgb(luminance_11HW, chroma_12HW, ab_scale)[0]


def _resized(picture_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(picture_BCHW, size, mode="bicubic", antialias=True, align_corners=False)


def score_colouring(
    generator: nn.Module,
    batches: Iterable[Batch],
    *,
    ab_scale: float,
    seed: int = 0,
    autocast: torch.autocast | None = None,
    num_pictures: int = 0,
) -> Coloured:
    """Colour this rank's batches and score every image. The generator is left in the mode it was in."""
    with evaluating(generator):
        return _score(generator, batches, ab_scale, seed, autocast, num_pictures)


def _score(
    generator: nn.Module,
    batches: Iterable[Batch],
    ab_scale: float,
    seed: int,
    autocast: torch.autocast | None,
    num_pictures: int,
) -> Coloured:
    coloured = Coloured()
    for batch in batches:
        luminance_B1HW, chroma_B2HW = batch.lab_B3HW[:, :1], batch.lab_B3HW[:, 1:]
        set_dropout_keys(generator, dropout_keys(seed, batch.slots_B))  # used by "paper" inference only
        predicted_B2HW = colour_normalised(generator, luminance_B1HW, autocast)
        grey, rgb, original = (
            to_rgb(luminance_B1HW, chroma, ab_scale)
            for chroma in (torch.zeros_like(chroma_B2HW), predicted_B2HW, chroma_B2HW)
        )
        columns = (
            psnr_B(rgb, original),
            ssim_B(rgb, original),
            chroma_l1_B(predicted_B2HW * ab_scale, chroma_B2HW * ab_scale),
            colourfulness_B(rgb),
            psnr_B(grey, original),
            ssim_B(grey, original),
            chroma_l1_B(torch.zeros_like(chroma_B2HW), chroma_B2HW * ab_scale),
            colourfulness_B(original),
        )
        coloured.rows += torch.stack([column.double() for column in columns], dim=1).tolist()
        coloured.sample_ids += batch.sample_ids_B.tolist()
        room = num_pictures - len(coloured.pictures)
        coloured.pictures += list(zip(grey[:room].cpu(), rgb[:room].cpu(), original[:room].cpu(), strict=True))
    return coloured


def mean_scores(coloured: Coloured, ranks: Ranks) -> dict[str, float]:
    """Return the mean of every column over all ranks' images, with minimum and maximum of PSNR and SSIM.

    Called on all ranks; the same on all. `images` is the number of images scored.
    """
    gathered = ranks.gather((coloured.sample_ids, coloured.rows))
    by_sample = {i: row for ids, rows in gathered for i, row in zip(ids, rows, strict=True)}
    if not by_sample:
        raise TrainingError(
            "none of the pictures to score could be read: check them with launcher/pack.py --verify DIR"
        )
    table = torch.tensor([by_sample[i] for i in sorted(by_sample)], dtype=torch.float64)
    for name in ("psnr", "grey_psnr"):  # a picture without colour equals the grey baseline: infinite
        table[:, COLUMNS.index(name)].clamp_(max=MAX_PSNR_DB)
    scores = {name: float(mean) for name, mean in zip(COLUMNS, table.mean(0), strict=True)}
    for name in ("psnr", "ssim"):
        column = table[:, COLUMNS.index(name)]
        scores |= {f"{name}_min": float(column.min()), f"{name}_max": float(column.max())}
    return {**scores, "images": float(len(by_sample))}


def save_grid(path: Path, coloured: Coloured) -> None:
    """Save the picture of grey, coloured and original side by side. Rank 0 only."""
    if coloured.pictures:
        captions = [f"sample {i}" for i in coloured.sample_ids[: len(coloured.pictures)]]
        colour_grid(path, coloured.pictures, captions)
