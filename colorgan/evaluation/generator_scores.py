"""How well a generator colours: scores of held-out pictures beside those of no colour at all, and picture grids.

Scores are computed per image on float sRGB in [0, 1] after Lab -> RGB, clipped to what can be shown, and averaged in
the order of the images, so that neither batch size nor the number of ranks enters: at the network's size (Treneska et
al. 2022, Table 3), or at each photo's own size, with the photo's luminance and the network's chroma enlarged.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from colorgan.color import rgb_to_lab_B3HW
from colorgan.data import Batch
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.evaluation.color_difference import chroma_error_B, ciede2000_B
from colorgan.evaluation.metrics import chroma_l1_B, colorfulness_B, psnr_B, ssim_B
from colorgan.evaluation.picture_grids import color_grid, to_uint8_HWC
from colorgan.models.colorizing import color_normalised, lab_and_predicted, resized, to_rgb
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys

# One row an image. "grey" is the baseline that leaves ab = 0. chroma_error and chroma_l1 are in Lab units, the latter
# of the network's own ab, before they are clipped to sRGB.
_ERRORS = ("psnr", "ssim", "ciede2000", "chroma_error", "chroma_l1")
COLUMNS = (
    *_ERRORS,
    *(f"grey_{name}" for name in _ERRORS),
    "colourfulness",
    "original_colourfulness",
)
MAX_PSNR_DB = 100.0
# Under it a set of originals counts as grey: JPEG's rounding alone gives a grey picture up to 0.5.
MIN_COLOURFULNESS = 1.0
MAX_SHOWN_PX = 384  # longest side of a picture that is kept to be shown


@dataclass(frozen=True)
class Shown:
    """A picture to look at: grey, coloured and original, 3HW bytes, with the PSNR of coloured and grey in dB."""

    psnr: float
    grey_psnr: float
    sample_id: int
    pictures: tuple[Tensor, Tensor, Tensor]


@dataclass
class Colored:
    """Scores of one rank's images, and some of them to look at.

    `first` are the first `num_pictures`, `ranked` the worst and the best so many, by PSNR, the worst first.
    """

    num_pictures: int = 0
    num_ranked: int = 0
    sample_ids: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    first: list[Shown] = field(default_factory=list)
    ranked: list[Shown] = field(default_factory=list)


def score_coloring(
    generator: nn.Module,
    batches: Iterable[Batch],
    *,
    ab_scale: float,
    seed: int = 0,
    autocast: torch.autocast | None = None,
    num_pictures: int = 0,
    num_ranked: int = 0,
) -> Colored:
    """Colour this rank's batches and score every image. The generator is left in the mode it was in."""
    colored = Colored(num_pictures, num_ranked)
    with evaluating(generator):
        for batch in batches:
            set_dropout_keys(
                generator, dropout_keys(seed, batch.positions_B)
            )  # used by "paper" inference only
            predicted_B2HW = color_normalised(generator, batch.lab_B3HW[:, :1], autocast)
            _add(colored, batch.sample_ids_B.tolist(), batch.lab_B3HW, predicted_B2HW, ab_scale)
    return colored


def score_photos(
    generator: nn.Module,
    photos: Iterable[tuple[int, Tensor]],
    *,
    image_size: int,
    ab_scale: float,
    seed: int = 0,
    num_pictures: int = 0,
    num_ranked: int = 0,
) -> Colored:
    """Colour this rank's photos one by one as `colour_photo` does, and score each at its own size.

    Args:
        photos: number in the set and uint8 sRGB, 3HW, on the generator's device. Each needs some 400 bytes a pixel.

    Raises:
        ValueError: A photo has a side under 11 pixels, the window of SSIM.
    """
    colored = Colored(num_pictures, num_ranked)
    for sample_id, photo_3HW in photos:
        lab_13HW, chroma_12HW = lab_and_predicted(generator, photo_3HW, image_size, ab_scale, seed)
        _add(colored, [sample_id], lab_13HW, chroma_12HW, ab_scale)
    return colored


def _add(
    colored: Colored,
    sample_ids: list[int],
    lab_B3HW: Tensor,
    predicted_B2HW: Tensor,
    ab_scale: float,
) -> None:
    """Score a batch from its normalised Lab and the chroma predicted for it, and keep what is to be shown."""
    luminance_B1HW, chroma_B2HW = lab_B3HW[:, :1], lab_B3HW[:, 1:]
    none_B2HW = torch.zeros_like(chroma_B2HW)
    chromas = (none_B2HW, predicted_B2HW, chroma_B2HW)
    grey, rgb, original = pictures = [
        to_rgb(luminance_B1HW, chroma, ab_scale) for chroma in chromas
    ]
    target_B3HW = rgb_to_lab_B3HW(original.double())
    columns = []
    for picture, chroma in ((rgb, predicted_B2HW), (grey, none_B2HW)):
        shown_B3HW = rgb_to_lab_B3HW(picture.double())
        columns += [
            psnr_B(picture, original),
            ssim_B(picture, original),
            ciede2000_B(shown_B3HW, target_B3HW),
            chroma_error_B(shown_B3HW, target_B3HW),
            chroma_l1_B(chroma * ab_scale, chroma_B2HW * ab_scale),
        ]
    columns += [colorfulness_B(rgb), colorfulness_B(original)]
    rows = torch.stack(columns, dim=1).tolist()
    colored.rows += rows
    colored.sample_ids += sample_ids
    _keep(colored, sample_ids, rows, pictures)


def _keep(
    colored: Colored, sample_ids: list[int], rows: list[list[float]], pictures: Sequence[Tensor]
) -> None:
    """Keep the first pictures, and those that are among the worst or the best so far."""
    ends, number = colored.ranked, colored.num_ranked
    for index, (sample_id, row) in enumerate(zip(sample_ids, rows, strict=True)):
        psnr, grey_psnr = (
            min(row[COLUMNS.index(name)], MAX_PSNR_DB) for name in ("psnr", "grey_psnr")
        )
        place = bisect_left(
            ends, (psnr, sample_id), key=lambda shown: (shown.psnr, shown.sample_id)
        )
        is_first = len(colored.first) < colored.num_pictures
        is_end = len(ends) < 2 * number or place != number
        if not is_first and not is_end:
            continue
        grey, rgb, original = (_to_show(picture[index]) for picture in pictures)
        shown = Shown(psnr, grey_psnr, sample_id, (grey, rgb, original))
        if is_first:
            colored.first.append(shown)
        if is_end:
            ends.insert(place, shown)
            del ends[number : len(ends) - number]


def _to_show(picture_3HW: Tensor) -> Tensor:
    """Bytes on the CPU, made smaller where it is large."""
    height, width = picture_3HW.shape[-2:]
    scale = MAX_SHOWN_PX / max(height, width)
    if scale < 1.0:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        picture_3HW = resized(picture_3HW[None], size)[0]
    return torch.from_numpy(to_uint8_HWC(picture_3HW)).permute(2, 0, 1)


def mean_scores(colored: Colored, ranks: Ranks) -> dict[str, float]:
    """Return the mean of every column over all ranks' images, with minimum and maximum of PSNR and SSIM.

    `colourfulness_ratio` is the mean of the coloured over the mean of the originals: a mean of ratios would be that of
    the few near-grey originals. Of nothing but grey originals it is NaN. Called on all ranks; the same on all. `images`
    is the number of images scored.
    """
    gathered = ranks.gather((colored.sample_ids, colored.rows))
    by_sample = {i: row for ids, rows in gathered for i, row in zip(ids, rows, strict=True)}
    if not by_sample:
        raise TrainingError(
            "none of the pictures to score could be used: they are unreadable (check them with launcher/pack.py "
            "--verify DIR), or have a side under 11 pixels, the window of SSIM"
        )
    table = torch.tensor([by_sample[i] for i in sorted(by_sample)], dtype=torch.float64)
    for name in (
        "psnr",
        "grey_psnr",
    ):  # a picture without colour equals the grey baseline: infinite
        table[:, COLUMNS.index(name)].clamp_(max=MAX_PSNR_DB)
    scores = {name: float(mean) for name, mean in zip(COLUMNS, table.mean(0), strict=True)}
    for name in ("psnr", "ssim"):
        column = table[:, COLUMNS.index(name)]
        scores |= {f"{name}_min": float(column.min()), f"{name}_max": float(column.max())}
    original = scores["original_colourfulness"]
    ratio = scores["colourfulness"] / original if original >= MIN_COLOURFULNESS else math.nan
    return {**scores, "colourfulness_ratio": ratio, "images": float(len(by_sample))}


def scores_table(scores: Mapping[str, float]) -> str:
    """Return a line a score: of the coloured pictures (mean, minimum, maximum) and of the grey ones (ab = 0)."""
    lines = [f"{'':24}{'coloured':>9}{'min':>9}{'max':>9}{'grey':>9}"]
    for title, name, digits in (
        ("PSNR, dB", "psnr", 2),
        ("SSIM", "ssim", 4),
        ("CIEDE2000", "ciede2000", 2),
        ("chroma error, Lab units", "chroma_error", 2),
        ("L1 of ab, Lab units", "chroma_l1", 2),
        ("colourfulness", "colourfulness", 1),
    ):
        values = [scores.get(key) for key in (name, f"{name}_min", f"{name}_max", f"grey_{name}")]
        shown = "".join(f"{'' if value is None else f'{value:.{digits}f}':>9}" for value in values)
        lines.append(f"{title:24}{shown}")
    original, ratio = scores["original_colourfulness"], scores["colourfulness_ratio"]
    lines.append(f"{'':24}of the originals {original:.1f}, ratio of the means {ratio:.3f}")
    return "\n".join(line.rstrip() for line in lines)


def save_grid(path: Path, colored: Colored) -> None:
    """Save the picture of grey, coloured and original side by side. Rank 0 only."""
    _save(path, colored.first)


def save_best_and_worst(folder: Path, colored: Colored, ranks: Ranks) -> None:
    """Save `best.png` and `worst.png`: the `num_ranked` pictures of highest and lowest PSNR. Called on all ranks."""
    gathered = ranks.gather(colored.ranked)
    if ranks.main:
        ranked = sorted(
            (shown for each in gathered for shown in each),
            key=lambda shown: (shown.psnr, shown.sample_id),
        )
        _save(folder / "worst.png", ranked[: colored.num_ranked])
        _save(folder / "best.png", ranked[::-1][: colored.num_ranked])


def _save(path: Path, rows: Sequence[Shown]) -> None:
    if rows:
        captions = [
            f"sample {shown.sample_id}: PSNR {shown.psnr:.2f} dB (grey {shown.grey_psnr:.2f})"
            for shown in rows
        ]
        color_grid(path, [shown.pictures for shown in rows], captions)


def scores_text(scores: Mapping[str, float]) -> str:
    """Return one line: each score beside that of the grey picture (ab = 0)."""
    return (
        f"PSNR {scores['psnr']:.2f} dB (grey {scores['grey_psnr']:.2f}), SSIM {scores['ssim']:.4f} "
        f"(grey {scores['grey_ssim']:.4f}), CIEDE2000 {scores['ciede2000']:.2f} (grey {scores['grey_ciede2000']:.2f}), "
        f"chroma error {scores['chroma_error']:.2f} (grey {scores['grey_chroma_error']:.2f}), "
        f"L1 of ab {scores['chroma_l1']:.3f} (grey {scores['grey_chroma_l1']:.3f}), "
        f"colourfulness {scores['colourfulness']:.1f} (original {scores['original_colourfulness']:.1f}) "
        f"on {scores['images']:.0f} held-out pictures"
    )
