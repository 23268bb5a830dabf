"""What `import colorgan` offers to users' own programs; every name is loaded when it is first used.

    from colorgan import Classifier, Detector, Encoder, Generator, Segmenter    # from_pretrained
    from colorgan import Loader, colorize, score

docs/python.md shows each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from colorgan.data import (
    DEFAULT_CACHE_GB,
    Batch,
    Targets,
    check_labels,
    open_set,
    open_set_loader,
)
from colorgan.devices import exact_float32
from colorgan.distributed.ranks import DeviceName, Ranks, chosen_device
from colorgan.errors import UsageError
from colorgan.evaluation.evaluate import score_folder
from colorgan.evaluation.picture_grids import to_uint8_HWC
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.models.generator import Generator
from colorgan.models.predictors import Classifier, Detector, Segmenter
from colorgan.models.pretrained import find_model
from colorgan.models.pyramid import Encoder

__all__ = [
    "Classifier",
    "Detector",
    "Encoder",
    "Generator",
    "Loader",
    "Segmenter",
    "colorize",
    "score",
]


def colorize(image: Any, generator: Generator | str | Path, *, seed: int = 0) -> Any:
    """Return a photo in color, of the kind that it was given as.

    Its luminance stays; its own colors, if any, are not used.

    Args:
        image: Of any size: a PIL image, a numpy array (H x W or H x W x 3) or a tensor (H x W or
            3 x H x W); uint8, or floats in [0, 1].
        generator: A generator folder, its name on the hub, or a loaded `Generator`, which is faster
            for several photos. A loaded one colors on its own device.
        seed: Of the dropout of "paper" inference.

    Returns:
        A PIL image of mode RGB, an array H x W x 3 or a tensor 3 x H x W; uint8 for uint8 and for
        PIL images, else float32 in [0, 1].

    Raises:
        UsageError: The image could be read in two ways (floats beyond [0, 1], say), or `generator`
            is something else.
        ModelFolderError: There is no such generator.
    """
    if not isinstance(generator, Generator):
        if not isinstance(generator, str | Path):
            kind = type(generator).__name__
            raise UsageError(f"generator: a folder, a name on the hub or a Generator, not {kind}")
        generator = Generator.from_pretrained(generator)

    colored_3HW = generator.color(image, seed)
    if isinstance(image, Image.Image):
        return Image.fromarray(to_uint8_HWC(colored_3HW))
    if isinstance(image, np.ndarray):
        is_bytes = image.dtype == np.uint8
        colored_HW3 = colored_3HW.permute(1, 2, 0).cpu().numpy()
        return to_uint8_HWC(colored_3HW) if is_bytes else colored_HW3
    if image.dtype == torch.uint8:
        bytes_3HW: Tensor = torch.from_numpy(to_uint8_HWC(colored_3HW)).permute(2, 0, 1)
        return bytes_3HW
    return colored_3HW


def score(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    batch_size: int = 32,
    own_size: bool = False,
    device: DeviceName = "auto",
) -> dict[str, float]:
    """Score a model on a packed set, as launcher/evaluate.py does in one process.

    Args:
        model: The folder of a generator or of a fine-tuned model, or its name on the hub.
        data: One or several packed folders with the labels that the model is scored on.
        batch_size: Images per forward pass.
        own_size: A generator: also at each photo's own size.
        device: "auto" takes a GPU where PyTorch finds one.

    Returns:
        Each score by its name; shares are in [0, 1].

    Raises:
        UsageError: The set cannot score the model, or an argument is out of its range.
        ModelFolderError: There is no such model.
        ShardError: A folder is no packed set.
    """
    _check_count("batch_size", batch_size)
    _check_choice("device", device, get_args(DeviceName))
    folders = [data] if isinstance(data, str | Path) else list(data)
    if not folders:
        raise UsageError("data: no folder; name a packed set")
    settings = EvaluateSettings.model_validate(
        {
            "model": find_model(model),
            "data": [str(folder) for folder in folders],
            "batch_size": batch_size,
            "own_size": own_size,
            "num_pictures": 0,
        }
    )
    with exact_float32():  # as launcher/evaluate.py
        evaluation, _, _ = score_folder(settings, Ranks(0, 1, chosen_device(device)))
    return dict(evaluation.record.scores)


class Loader:
    """A packed set as batches for a training loop of one's own: one epoch per iteration.

    Each iteration goes on where the last one ended, in another order; the same seed gives the same
    images at the same positions on any number of ranks. In a process group every rank gets its own
    part of each global batch.

    A `Batch` holds `lab_B3HW`: float32 L/50 - 1, a and b over `ab_scale`; and the labels that
    `targets` names.

    Args:
        folders: One or several packed folders, or their URLs.
        image_size: Side of the images in pixels.
        batch_size: Images per batch on this rank.
        targets: "none", "classes", "mask" or "boxes".
        seed: Of the order, the crops and the flips.
        random_crop_min_area: Smallest share of an image's area that a crop keeps; 1 = no crop.
        flip: Mirror every other image.
        shuffle: False for one pass in the set's order: whole images, no flip.
        ab_scale: Divisor of a and b.
        device: Where images are decoded and batches end up.

    Attributes:
        images_seen: Position in the stream, of all ranks together; set it to go on from there.

    Raises:
        ShardError: A folder is no packed set.
        UsageError: The set has no labels of that kind, or an argument is out of its range.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        *,
        image_size: int,
        batch_size: int,
        targets: Targets = "none",
        seed: int = 0,
        random_crop_min_area: float = 1.0,
        flip: bool = False,
        shuffle: bool = True,
        ab_scale: float = 128.0,
        device: str | torch.device = "cpu",
    ) -> None:
        named = [folders] if isinstance(folders, str | Path) else list(folders)
        for name, value in {"image_size": image_size, "batch_size": batch_size}.items():
            _check_count(name, value)
        _check_choice("targets", targets, get_args(Targets))
        if not ab_scale > 0:
            raise UsageError(f"ab_scale {ab_scale}: more than 0, the divisor of a and b")
        self._ranks = _own_ranks(_found_device(device))
        shards = open_set(named, None, DEFAULT_CACHE_GB, self._ranks)
        check_labels(shards, targets, self._ranks)
        self._loader = open_set_loader(
            shards,
            self._ranks,
            image_size=image_size,
            ab_scale=ab_scale,
            batch_size=batch_size,
            targets=targets,
            seed=seed,
            random_crop_min_area=random_crop_min_area,
            flip=flip,
        )
        self._batch_size = batch_size
        self._shuffle = shuffle
        self.classes = shards.classes
        self.num_samples = shards.num_samples
        self.images_seen = 0

    def __len__(self) -> int:
        """Return this rank's batches per iteration."""
        if self._shuffle:
            return self.num_samples // (self._batch_size * self._ranks.world_size)
        num_batches = -(-self.num_samples // self._batch_size)
        return len(range(self._ranks.rank, num_batches, self._ranks.world_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches.

        Raises:
            ShardError: Too many images cannot be read, or the set is smaller than one batch.
        """
        if not self._shuffle:
            yield from self._loader.eval_batches()
            return

        steps = self._loader.train_batches(self.images_seen)
        for _, (batch,) in zip(range(max(1, len(self))), steps, strict=False):
            self.images_seen += self._batch_size * self._ranks.world_size
            yield batch

    def close(self) -> None:
        """Stop the decoding threads and close the files."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} {value}: at least 1")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r}: one of {', '.join(choices)}")


def _found_device(name: str | torch.device) -> torch.device:
    """Return a device that PyTorch finds here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}: cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name}: PyTorch finds {torch.cuda.device_count()} GPUs here")
    # The current GPU by its number: other threads have a current one of their own.
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _own_ranks(device: torch.device) -> Ranks:
    """Return this process's place in the user's process group, or by its launcher's variables."""
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), device)
    rank, world_size = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    return Ranks(rank, max(1, world_size), device)
