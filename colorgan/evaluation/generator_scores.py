"""How well a generator colors: scores of held-out images beside those of no color at all.

Scores are computed per image on float sRGB in [0, 1] after Lab -> RGB, clipped to what can be
shown, and averaged in the order of the images, so that neither batch size nor the number of ranks
enters: at the network's size (Treneska et al. 2022, Table 3), or at each photo's own size, with the
photo's luminance and the network's chroma enlarged. They are given over all images and over those
that are not near-grey, since a photo without color is scored best by coloring nothing.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from colorgan.color import rgb_to_lab_B3HW
from colorgan.data import GREY_CHROMA, Batch
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.evaluation.color_difference import chroma_error_B, ciede2000_B, mean_chroma_B
from colorgan.evaluation.metrics import chroma_l1_B, colorfulness_B, psnr_B, ssim_B
from colorgan.evaluation.picture_grids import color_grid, to_uint8_HWC
from colorgan.evaluation.record import WITHOUT_NEAR_GREY
from colorgan.evaluation.strips import write_strips
from colorgan.models.colorizing import color_normalised, lab_and_predicted, resized, to_rgb
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys

# One row per image. "grey" is the baseline that leaves ab = 0. chroma_error and chroma_l1 are in
# Lab units, the latter of the network's own ab, before they are clipped to sRGB.
_ERRORS = ("psnr", "ssim", "ciede2000", "chroma_error", "chroma_l1")
COLUMNS = (
    *_ERRORS,
    *(f"grey_{name}" for name in _ERRORS),
    "colourfulness",
    "original_colourfulness",
    "original_chroma",
)
# The same means over the images that are not near-grey.
# An image without color equals the grey baseline, whose PSNR is infinite.
MAX_PSNR_DB = 100.0
# Under it a set of originals counts as grey: JPEG's rounding alone gives a grey image up to 0.5.
MIN_COLOURFULNESS = 1.0
# Longest side of an image that is kept to be shown.
MAX_SHOWN_PX = 384
# Pixels scored at a time: some 500 bytes each in float64, so 0.5 GB.
SCORED_PIXELS = 1 << 20
# Of one image, for the GPU: 5 GB.
MAX_GPU_PIXELS = 8 << 20
CELLS = ("grey", "coloured", "original")


@dataclass(frozen=True)
class ShownImage:
    """An image to look at: its PSNR and its grey version's in dB, and its `CELLS`, uint8 3HW."""

    psnr: float
    grey_psnr: float
    sample_id: int
    cells: tuple[Tensor, Tensor, Tensor]


@dataclass
class ColoringScores:
    """Scores of one rank's images, and some of them to look at.

    Attributes:
        num_pictures: How many of the first images to keep.
        num_ranked: How many of the worst and of the best images to keep, by PSNR.
        sample_ids: Number in the set per image.
        rows: `COLUMNS` per image.
        first: The first images.
        ranked: The worst images and the best ones, the worst first.
    """

    num_pictures: int = 0
    num_ranked: int = 0
    sample_ids: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    first: list[ShownImage] = field(default_factory=list)
    ranked: list[ShownImage] = field(default_factory=list)


def score_coloring(
    generator: nn.Module,
    batches: Iterable[Batch],
    *,
    ab_scale: float,
    seed: int = 0,
    autocast: torch.autocast | None = None,
    num_pictures: int = 0,
    num_ranked: int = 0,
) -> ColoringScores:
    """Color this rank's batches and score every image.

    The generator is left in the mode it was in.
    """
    scores = ColoringScores(num_pictures, num_ranked)
    with evaluating(generator):
        for batch in batches:
            # Only "paper" inference has dropout.
            set_dropout_keys(generator, dropout_keys(seed, batch.positions_B))
            predicted_B2HW = color_normalised(generator, batch.lab_B3HW[:, :1], autocast)
            _add(scores, batch.sample_ids_B.tolist(), batch.lab_B3HW, predicted_B2HW, ab_scale)
    return scores


def score_photos(
    generator: nn.Module,
    photos: Iterable[tuple[int, Tensor]],
    *,
    image_size: int,
    ab_scale: float,
    seed: int = 0,
    num_pictures: int = 0,
    num_ranked: int = 0,
) -> ColoringScores:
    """Color this rank's photos one by one as `color_photo` does, and score each at its own size.

    Args:
        generator: Left in the mode it was in.
        photos: Number in the set and uint8 sRGB, 3HW. Each needs some 500 bytes per pixel.
        image_size: Side of the network's square.
        ab_scale: Divisor of a and b.
        seed: Of the dropout of "paper" inference.
        num_pictures: How many of the first photos to keep.
        num_ranked: How many of the worst and of the best photos to keep.

    Raises:
        ValueError: A photo has a side under 11 pixels, the window of SSIM.
    """
    scores = ColoringScores(num_pictures, num_ranked)
    for sample_id, photo_3HW in photos:
        lab_13HW, chroma_12HW = lab_and_predicted(generator, photo_3HW, image_size, ab_scale, seed)
        _add(scores, [sample_id], lab_13HW, chroma_12HW, ab_scale)
    return scores


def _add(
    scores: ColoringScores,
    sample_ids: list[int],
    lab_B3HW: Tensor,
    predicted_B2HW: Tensor,
    ab_scale: float,
) -> None:
    """Score a batch from its normalised Lab and its predicted chroma, some images at a time."""
    height, width = lab_B3HW.shape[-2:]
    at_a_time = max(1, SCORED_PIXELS // (height * width))
    if height * width > MAX_GPU_PIXELS:
        # The machine has more memory than its GPU.
        lab_B3HW, predicted_B2HW = lab_B3HW.cpu(), predicted_B2HW.cpu()
    for start in range(0, len(sample_ids), at_a_time):
        part = slice(start, start + at_a_time)
        images, rows = _score(lab_B3HW[part], predicted_B2HW[part], ab_scale)
        scores.rows += rows
        scores.sample_ids += sample_ids[part]
        _keep(scores, sample_ids[part], rows, images)


def _score(
    lab_B3HW: Tensor, predicted_B2HW: Tensor, ab_scale: float
) -> tuple[list[Tensor], list[list[float]]]:
    """Return the images of `CELLS`, sRGB B3HW each, and one row of `COLUMNS` per image."""
    luminance_B1HW, chroma_B2HW = lab_B3HW[:, :1], lab_B3HW[:, 1:]
    none_B2HW = torch.zeros_like(chroma_B2HW)
    grey = to_rgb(luminance_B1HW, none_B2HW, ab_scale)
    colored = to_rgb(luminance_B1HW, predicted_B2HW, ab_scale)
    original = to_rgb(luminance_B1HW, chroma_B2HW, ab_scale)

    target_B3HW = rgb_to_lab_B3HW(original.double())
    columns = []
    for rgb_B3HW, ab_B2HW in ((colored, predicted_B2HW), (grey, none_B2HW)):
        shown_B3HW = rgb_to_lab_B3HW(rgb_B3HW.double())
        columns += [
            psnr_B(rgb_B3HW, original),
            ssim_B(rgb_B3HW, original),
            ciede2000_B(shown_B3HW, target_B3HW),
            chroma_error_B(shown_B3HW, target_B3HW),
            chroma_l1_B(ab_B2HW * ab_scale, chroma_B2HW * ab_scale),
        ]

    columns += [colorfulness_B(colored), colorfulness_B(original), mean_chroma_B(original)]
    return [grey, colored, original], torch.stack(columns, dim=1).tolist()


def _keep(
    scores: ColoringScores,
    sample_ids: list[int],
    rows: list[list[float]],
    images: Sequence[Tensor],
) -> None:
    """Keep the first images, and those that are among the worst or the best so far."""
    ends, number = scores.ranked, scores.num_ranked
    psnr_column, grey_column = COLUMNS.index("psnr"), COLUMNS.index("grey_psnr")

    for index, (sample_id, row) in enumerate(zip(sample_ids, rows, strict=True)):
        psnr = min(row[psnr_column], MAX_PSNR_DB)
        place = bisect_left(ends, (psnr, sample_id), key=_rank)
        is_first = len(scores.first) < scores.num_pictures
        is_end = len(ends) < 2 * number or place != number
        if not is_first and not is_end:
            continue

        grey, colored, original = (_to_show(each[index]) for each in images)
        grey_psnr = min(row[grey_column], MAX_PSNR_DB)
        shown = ShownImage(psnr, grey_psnr, sample_id, (grey, colored, original))
        if is_first:
            scores.first.append(shown)
        if is_end:
            ends.insert(place, shown)
            # The middle goes: memory holds as many images as are shown, whatever the set's size.
            del ends[number : len(ends) - number]


def _rank(shown: ShownImage) -> tuple[float, int]:
    """Order by PSNR; equal ones by their number in the set."""
    return shown.psnr, shown.sample_id


def _to_show(rgb_3HW: Tensor) -> Tensor:
    """Bytes on the CPU, made smaller where the image is large."""
    height, width = rgb_3HW.shape[-2:]
    scale = MAX_SHOWN_PX / max(height, width)
    if scale < 1.0:
        size = (
            max(1, round(height * scale)),
            max(1, round(width * scale)),
        )
        # On the CPU: a GPU's antialiasing kernel refuses to shrink by much.
        rgb_3HW = resized(rgb_3HW[None].cpu(), size)[0]
    return torch.from_numpy(to_uint8_HWC(rgb_3HW)).permute(2, 0, 1)


def mean_scores(scores: ColoringScores, ranks: Ranks) -> dict[str, float]:
    """Return the mean of every column over all images, and the range of PSNR and SSIM.

    `colourfulness_ratio` is the mean of the colored over the mean of the originals: a mean of
    ratios would be that of the few near-grey originals. It is NaN where all originals are grey.
    `images` is the number of images scored, `near_grey_images` that of the originals whose mean
    chroma is under `GREY_CHROMA`, and `NAME_without_near_grey` is the mean without those; NaN if
    all are. Called on all ranks; the same on all.

    Raises:
        TrainingError: No rank scored an image.
    """
    too_small = ", or have a side under 11 pixels, the window of SSIM"
    table = table_of_all_ranks(scores.sample_ids, scores.rows, ranks, too_small)
    # One infinite score would make the mean infinite.
    for name in ("psnr", "grey_psnr"):
        table[:, COLUMNS.index(name)].clamp_(max=MAX_PSNR_DB)

    means = _means(table)
    for name in ("psnr", "ssim"):
        column = table[:, COLUMNS.index(name)]
        means[f"{name}_min"] = float(column.min())
        means[f"{name}_max"] = float(column.max())

    is_near_grey = table[:, COLUMNS.index("original_chroma")] < GREY_CHROMA
    in_color = _means(table[~is_near_grey])
    means |= {name + WITHOUT_NEAR_GREY: value for name, value in in_color.items()}
    means["near_grey_images"] = float(is_near_grey.sum())
    return {**means, "images": float(len(table))}


def table_of_all_ranks(
    sample_ids: Sequence[int], rows: Sequence[Sequence[float]], ranks: Ranks, other_cause: str = ""
) -> Tensor:
    """Return a row per image that any rank scored, in the order of the images, float64.

    Called on all ranks; the same on all.

    Args:
        sample_ids: Number in the set of each image that this rank scored.
        rows: Its scores.
        ranks: This process's place among the ranks.
        other_cause: Of images without a score, beside damage; ends the error's sentence.

    Raises:
        TrainingError: No rank scored an image.
    """
    by_sample: dict[int, Sequence[float]] = {}
    for their_ids, their_rows in ranks.gather((sample_ids, rows)):
        by_sample.update(zip(their_ids, their_rows, strict=True))

    if not by_sample:
        raise TrainingError(
            "no image could be scored: all are unreadable (check them with launcher/pack.py "
            f"--verify DIR){other_cause}"
        )
    ordered = [by_sample[sample_id] for sample_id in sorted(by_sample)]
    return torch.tensor(ordered, dtype=torch.float64)


def _means(table: Tensor) -> dict[str, float]:
    """Return the mean of every column, NaN for no row, and the ratio of colorfulness."""
    means = dict(zip(COLUMNS, table.mean(0).tolist(), strict=True))
    original = means["original_colourfulness"]
    is_colored = original >= MIN_COLOURFULNESS
    means["colourfulness_ratio"] = means["colourfulness"] / original if is_colored else math.nan
    return means


def scores_table(scores: Mapping[str, float]) -> str:
    """Return a text table, one row per score.

    Mean, minimum and maximum of the colored images, mean of the grey ones; below them the means
    without near-grey originals.
    """
    lines = [f"{'':24}{'colored':>9}{'min':>9}{'max':>9}{'grey':>9}"]
    for title, name, digits in (
        ("PSNR, dB", "psnr", 2),
        ("SSIM", "ssim", 4),
        ("CIEDE2000", "ciede2000", 2),
        ("chroma error, Lab units", "chroma_error", 2),
        ("L1 of ab, Lab units", "chroma_l1", 2),
        ("colourfulness", "colourfulness", 1),
    ):
        line = f"{title:24}"
        for key in (name, f"{name}_min", f"{name}_max", f"grey_{name}"):
            cell = f"{scores[key]:.{digits}f}" if key in scores else ""
            line += f"{cell:>9}"
        lines.append(line.rstrip())

    # A record leaves out what is undefined.
    ratio = scores.get("colourfulness_ratio", math.nan)
    ratio_text = f"{ratio:.3f}" if ratio == ratio else "undefined (grey originals)"
    original = f"{scores['original_colourfulness']:.1f}"
    lines.append(f"{'':24}of the originals {original}, ratio of the means {ratio_text}")
    lines += textwrap.wrap(_without_near_grey_text(scores), 80, subsequent_indent="  ")
    return "\n".join(lines)


def _without_near_grey_text(scores: Mapping[str, float]) -> str:
    """Return how many originals are near-grey, and the main means without them."""
    count, images = int(scores["near_grey_images"]), int(scores["images"])
    near_grey = f"near-grey (mean chroma under {GREY_CHROMA}): {count} of {images}"
    if count in (0, images):
        return near_grey

    texts = []
    for title, name, digits in (
        ("PSNR", "psnr", 2),
        ("SSIM", "ssim", 4),
        ("CIEDE2000", "ciede2000", 2),
        ("L1 of ab", "chroma_l1", 2),
    ):
        colored = scores[name + WITHOUT_NEAR_GREY]
        grey = scores[f"grey_{name}{WITHOUT_NEAR_GREY}"]
        texts.append(f"{title} {colored:.{digits}f} (grey {grey:.{digits}f})")
    return f"{near_grey}; without them {', '.join(texts)}"


def save_pictures(path: Path, shown: Sequence[ShownImage]) -> None:
    """Save images as one captioned grid, and as strips in the folder of the same name without .png.

    Rank 0 only.
    """
    if not shown:
        return

    captions = []
    strips = []
    for each in shown:
        captions.append(
            f"sample {each.sample_id}: PSNR {each.psnr:.2f} dB (grey {each.grey_psnr:.2f})"
        )
        scores = {"psnr": each.psnr, "grey_psnr": each.grey_psnr}
        strips.append((each.sample_id, scores, [to_uint8_HWC(cell) for cell in each.cells]))

    color_grid(path, [each.cells for each in shown], captions)
    write_strips(path.with_suffix(""), CELLS, strips)


def save_best_and_worst(folder: Path, scores: ColoringScores, ranks: Ranks) -> None:
    """Save the `num_ranked` images of highest and of lowest PSNR as `best` and `worst`.

    Called on all ranks.
    """
    gathered = ranks.gather(scores.ranked)
    if not ranks.main:
        return

    ranked = sorted([shown for each in gathered for shown in each], key=_rank)
    save_pictures(folder / "worst.png", ranked[: scores.num_ranked])
    save_pictures(folder / "best.png", ranked[::-1][: scores.num_ranked])


def scores_text(scores: Mapping[str, float]) -> str:
    """Return the main scores in a line of 80 columns, each beside that of the grey images."""
    return (
        f"held out: PSNR {scores['psnr']:.2f} dB (grey {scores['grey_psnr']:.2f}), "
        f"L1 of ab {scores['chroma_l1']:.2f} (grey {scores['grey_chroma_l1']:.2f})"
    )
