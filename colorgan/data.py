"""Opens packed folders as loaders for training, validation and scoring; the only user of `shards`.

A loader's keyword arguments are built here and nowhere else, so that a setting keeps its name and
type on the way from the recipe to `shards.loading.loader.Loader`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from colorgan.config.recipe import RunRecipe
from colorgan.distributed.ranks import Ranks, cores_a_rank, num_nodes
from colorgan.errors import UsageError
from shards.decoding.colored import ColoringTables, color_rows
from shards.errors import ManifestError, PictureError, ShardError
from shards.images.chroma import GREY_CHROMA
from shards.images.conversion import UprightPhoto, decode_upright, read_upright
from shards.images.photo import PHOTO_ENDINGS
from shards.images.policy import MAX_PIXELS_LIMIT
from shards.images.strips import replaced
from shards.loading.boxes import Boxes
from shards.loading.label_scan import ClassCounts, count_classes, has_labels, is_remote
from shards.loading.loader import Batch, Loader, Targets
from shards.loading.samples import Samples
from shards.loading.shard_set import ShardSet, Storage, open_shards
from shards.manifest import MANIFEST_FILE
from shards.order import Fit

__all__ = [
    "GREY_CHROMA",
    "MAX_PIXELS_LIMIT",
    "PHOTO_ENDINGS",
    "Batch",
    "Boxes",
    "ClassCounts",
    "ColoringTables",
    "Loader",
    "Loaders",
    "PackedPhotos",
    "PictureError",
    "ShardError",
    "ShardSet",
    "Targets",
    "UprightPhoto",
    "check_labels",
    "color_rows",
    "count_classes",
    "decode_upright",
    "is_packed",
    "is_remote",
    "open_loaders",
    "open_set",
    "open_set_loader",
    "open_whole_set",
    "read_upright",
    "replaced",
]


# More threads only hold more of the GPU's memory.
_MAX_GPU_DECODE_THREADS = 8
# Of shards from URLs that a node keeps, where no setting says it.
DEFAULT_CACHE_GB = 100.0
LABEL_WORDS = {"classes": "a class", "mask": "a mask", "boxes": "a box"}


@dataclass(frozen=True)
class Loaders:
    """The loaders of one training run on one rank."""

    train: Loader
    val: Loader | None


def open_set(
    folders: Sequence[str | Path], cache_dir: Path | None, cache_gb: float, ranks: Ranks
) -> ShardSet:
    """Open packed folders as one numbered set. Called on all ranks.

    Raises:
        ManifestError: A folder is not a finished packed set, or the folders do not fit together.
        LaunchError: Opening failed on another rank only.
    """
    storage = _storage(cache_dir, cache_gb)
    return ranks.on_all_ranks(lambda: open_shards(folders, storage))


def check_labels(shards: ShardSet, targets: Targets, ranks: Ranks) -> None:
    """Refuse a set without a single label of the kind that is to be learned or scored.

    Rank 0 reads labels until it finds one. Called on all ranks.

    Raises:
        UsageError: The set has none.
    """
    if targets == "none":
        return

    # One reader for all: the search may open many shards.
    labelled = ranks.gather(has_labels(shards, targets) if ranks.main else True)[0]
    if not labelled:
        folders = ", ".join(str(manifest.folder) for manifest in shards.manifests)
        raise UsageError(
            f"{folders}: no image has {LABEL_WORDS[targets]}: nothing to learn or to score; "
            "pack a corpus or a split that has them"
        )


@contextmanager
def open_loaders(
    recipe: RunRecipe,
    ranks: Ranks,
    train: ShardSet,
    val: ShardSet | None,
    *,
    micro_batch_size: int,
    targets: Targets = "none",
    image_size: int | None = None,
    ab_scale: float | None = None,
    fit: Fit = "squash",
) -> Iterator[Loaders]:
    """Open the loaders of a training run and close them at the end. Called on all ranks.

    Args:
        recipe: Names the batch sizes, the augmentation and how data is read.
        ranks: This process's place among the ranks.
        train: The training set.
        val: The validation set, read whole, each image once over all ranks; None for no validation.
        micro_batch_size: Images per forward pass on one rank.
        targets: Which labels come with the images.
        image_size: Side of the output in pixels; None for the recipe's.
        ab_scale: Divisor of a and b; None for the recipe's.
        fit: How images that are not square become so; labels follow.
    """
    size = recipe.network.image_size if image_size is None else image_size
    scale = recipe.network.ab_scale if ab_scale is None else ab_scale

    def open_one(shards: ShardSet, training: bool) -> Loader:
        data = recipe.data
        # Everything that changes an image is off in validation, whatever the recipe says.
        return Loader(
            shards,
            image_size=size,
            global_batch_size=(
                # Validation goes through in micro-batches, without steps to fill.
                recipe.batch.global_batch_size if training else micro_batch_size * ranks.world_size
            ),
            micro_batch_size=micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_nodes=num_nodes(ranks.world_size),
            seed=recipe.seed,
            weights=data.weights if training else (),
            random_crop_min_area=data.random_crop_min_area if training else 1.0,
            flip=data.flip and training,
            fit=fit,
            targets=targets,
            device=str(ranks.device),
            num_threads=data.decode_threads or _decode_threads(ranks),
            hardware_decoder_share=data.hardware_decoder_share,
            prefetch_batches=data.prefetch_batches if training else 2,
            ab_scale=scale,
            max_bad_share=data.max_bad_share,
        )

    # On all ranks together: one that fails here would leave the others in a first step without it.
    train_loader = ranks.on_all_ranks(lambda: open_one(train, training=True))
    try:
        val_loader = (
            None if val is None else ranks.on_all_ranks(lambda: open_one(val, training=False))
        )
        try:
            yield Loaders(train_loader, val_loader)
        finally:
            if val_loader is not None:
                val_loader.close()
    finally:
        train_loader.close()


def open_set_loader(
    shards: ShardSet,
    ranks: Ranks,
    *,
    image_size: int,
    ab_scale: float,
    batch_size: int,
    targets: Targets,
    fit: Fit = "squash",
    seed: int = 0,
    random_crop_min_area: float = 1.0,
    flip: bool = False,
) -> Loader:
    """Return a loader without a recipe, one micro-batch a step; its owner closes it.

    Args:
        shards: The set.
        ranks: This process's place among the ranks.
        image_size: Side of the output in pixels.
        ab_scale: Divisor of a and b.
        batch_size: Images per step on one rank.
        targets: Which labels come with the images.
        fit: How images that are not square become so; labels follow.
        seed: Of the order, the crops and the flips.
        random_crop_min_area: Smallest share of an image's area that a crop keeps; 1 = no crop.
        flip: Mirror every other image.
    """
    return Loader(
        shards,
        image_size=image_size,
        global_batch_size=batch_size * ranks.world_size,
        micro_batch_size=batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_nodes=num_nodes(ranks.world_size),
        seed=seed,
        random_crop_min_area=random_crop_min_area,
        flip=flip,
        fit=fit,
        targets=targets,
        device=str(ranks.device),
        num_threads=_decode_threads(ranks),
        ab_scale=ab_scale,
    )


@contextmanager
def open_whole_set(
    shards: ShardSet,
    ranks: Ranks,
    *,
    image_size: int,
    ab_scale: float,
    batch_size: int,
    targets: Targets,
    fit: Fit = "squash",
) -> Iterator[Loader]:
    """Open a loader for one pass over a set, each image once over all ranks. Called on all ranks.

    Args:
        shards: The set.
        ranks: This process's place among the ranks.
        image_size: Side of the output in pixels.
        ab_scale: Divisor of a and b.
        batch_size: Images per forward pass on one rank.
        targets: Which labels come with the images.
        fit: How images that are not square become so; labels follow.
    """
    loader = ranks.on_all_ranks(
        lambda: open_set_loader(
            shards,
            ranks,
            image_size=image_size,
            ab_scale=ab_scale,
            batch_size=batch_size,
            targets=targets,
            fit=fit,
        )
    )
    try:
        yield loader
    finally:
        loader.close()


def is_packed(path: Path) -> bool:
    """Return whether a path is a packed folder, and not one of loose photos."""
    return (path / MANIFEST_FILE).is_file()


class PackedPhotos:
    """The photos of packed folders, read one by one in any order; `close` closes the files.

    Args:
        folders: The packed folders.
        max_pixels: Photos with more pixels are refused.

    Raises:
        ShardError: A folder is not a packed set.
    """

    def __init__(self, folders: Sequence[str | Path], max_pixels: int) -> None:
        self._samples = Samples(open_shards(folders, _storage(None, DEFAULT_CACHE_GB)))
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, number: int) -> str:
        """Return a photo's key.

        Raises:
            ShardError: Its shard cannot be read.
        """
        return self._samples.key(number)

    def read(self, number: int) -> Image.Image:
        """Return a photo as stored, of mode RGB.

        Raises:
            ShardError: It cannot be read, or is damaged.
        """
        image = read_upright(io.BytesIO(self._samples.image(number)), self._max_pixels).image
        return image if image.mode == "RGB" else image.convert("RGB")

    def close(self) -> None:
        """Close the files."""
        self._samples.close()


def _decode_threads(ranks: Ranks) -> int:
    """Return the decoding threads of one rank: its cores, on a GPU at most 8.

    A GPU decodes itself, and each thread costs it memory: DALI sets buffers aside per thread.
    """
    cores = cores_a_rank()
    return min(cores, _MAX_GPU_DECODE_THREADS) if ranks.device.type == "cuda" else cores


def _storage(cache_dir: Path | None, cache_gb: float) -> Storage:
    """Return where shards are cached, and where the job script wants them staged.

    slurm/task.sh sets COLORGAN_STAGE_DIR, a folder on the node's own disk, and COLORGAN_STAGE_GB,
    the room for shards there in gigabytes.

    Raises:
        ManifestError: COLORGAN_STAGE_GB is not a number.
    """
    folder, gigabytes = os.environ.get("COLORGAN_STAGE_DIR"), os.environ.get("COLORGAN_STAGE_GB")
    try:
        stage_gb = float(gigabytes) if gigabytes else None
        # Also refuses NaN, which fails every comparison.
        if stage_gb is not None and not 0.0 <= stage_gb < 1e9:
            raise ValueError
    except ValueError:
        raise ManifestError(f"COLORGAN_STAGE_GB={gigabytes}: not a number of gigabytes.") from None
    return Storage(cache_dir, cache_gb, Path(folder) if folder else None, stage_gb)
