"""Fine-tuned models with one call: photos of any size to labels, masks or boxes.

    labels = Classifier.from_pretrained("runs/classify/model").predict(photos)
    masks = Segmenter.from_pretrained("runs/segment/model").predict(photos)
    boxes = Detector.from_pretrained("runs/detect/model").predict(photos)

Photos become the network's square as in training (squashed, cropped or padded); masks and boxes
come out at each photo's own size. Each class holds a network of colorgan/models/unet.py or of
colorgan/models/detector.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.devices import exact_float32
from colorgan.errors import UsageError
from colorgan.models.colorizing import STRIP_PIXELS
from colorgan.models.detector import detect
from colorgan.models.framing import VOID, Frame, framed_luminance
from colorgan.models.model_config import ModelConfig
from colorgan.models.model_folder import load_model
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys, set_inference
from colorgan.models.photo_input import as_photos
from colorgan.models.pretrained import find_model

BACKGROUND = "background"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Labels:
    """The classes of a photo: each one's probability, in the order of the model's classes."""

    scores: dict[str, float]

    @property
    def present(self) -> tuple[str, ...]:
        """Return the classes that are more likely there than not, likeliest first."""
        likely = [name for name, score in self.scores.items() if score >= 0.5]
        return tuple(sorted(likely, key=lambda name: -self.scores[name]))


@dataclass(frozen=True)
class Mask:
    """A class for each pixel of a photo.

    Attributes:
        index_HW: uint8 on the CPU, at the photo's size: indices into `classes`; 255 outside the
            middle square that a model fine-tuned with `fit: crop` sees.
        classes: Names; the first is the background.
    """

    index_HW: Tensor
    classes: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Return each class's share of the pixels seen, for classes that are there."""
        seen = self.index_HW[self.index_HW != VOID]
        counts = torch.bincount(seen, minlength=len(self.classes)).tolist()
        total = len(seen)
        return {
            name: count / total for name, count in zip(self.classes, counts, strict=True) if count
        }


@dataclass(frozen=True)
class Boxes:
    """The objects of a photo, best first.

    Attributes:
        boxes_N4: float32 x0, y0, x1, y1 in pixels of the photo.
        scores_N: float32, in (0, 1).
        classes_N: int64, indices into `classes`.
        classes: Names, without background.
    """

    boxes_N4: Tensor
    scores_N: Tensor
    classes_N: Tensor
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return each object's class."""
        return tuple(self.classes[index] for index in self.classes_N.tolist())


class _Predictor(nn.Module, Generic[Answer]):
    """A fine-tuned network and its config; eval mode means what the config says."""

    kind: ClassVar[str]

    def __init__(self, network: nn.Module, model_config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.model_config = model_config
        set_inference(network, model_config.inference)

    @classmethod
    def from_pretrained(cls, name: str | Path, **keywords: Any) -> Self:
        """Load a model folder, or one on the hub; in eval mode, on the CPU.

        Args:
            name: A folder that `launcher/finetune.py` wrote, or `user/name` on the hub.
            keywords: As in `find_model`.

        Raises:
            ModelFolderError: There is none, it is of another kind, or it is not ours; nothing of it
                was executed.
        """
        return cls(*load_model(find_model(name, **keywords), cls.kind)).eval()

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Return the network's output for L/50 - 1, B x 1 x S x S."""
        output: Tensor = self.network(luminance_B1HW)
        return output

    def predict(self, images: Any, batch_size: int = 32) -> Any:
        """Return an answer per photo; of one photo, the answer alone.

        A photo's answer does not depend on the others.

        Args:
            images: One photo as `colorgan.models.photo_input.as_photo` takes it (PIL, numpy or
                tensor), or several of any sizes.
            batch_size: Photos in one forward pass.

        Raises:
            UsageError: A photo could be read in two ways, or `batch_size` is under 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: at least 1")
        photos, is_one = as_photos(images)
        # Under the paper's inference, batch statistics would make one photo change another.
        size = 1 if self.model_config.inference == "paper" else batch_size
        answers: list[Answer] = []
        for start in range(0, len(photos), size):
            answers += self._predict_batch(photos[start : start + size])
        return answers[0] if is_one else answers

    def _predict_batch(self, images: Sequence[Any]) -> list[Answer]:
        squares, frames = [], []
        for image in images:
            square, seen = framed_luminance(image, self.model_config)
            squares.append(square)
            frames.append(seen)

        device = next(self.parameters()).device
        set_dropout_keys(self, dropout_keys(0, torch.zeros(len(squares), dtype=torch.int64)))
        with evaluating(self), torch.inference_mode(), exact_float32():
            outputs = self(torch.cat(squares).to(device)).float()
        return [
            self._answer(output, seen)
            for output, seen in zip(outputs.split(1), frames, strict=True)
        ]

    def _answer(self, output_1: Tensor, seen: Frame) -> Answer:
        """Return the answer for one photo, of which the network has seen a part."""
        raise NotImplementedError


class Classifier(_Predictor[Labels]):
    """Photos to `Labels`."""

    kind = "classifier"

    def _answer(self, output_1: Tensor, seen: Frame) -> Labels:
        probabilities = output_1[0].sigmoid().tolist()
        return Labels(dict(zip(self.model_config.classes, probabilities, strict=True)))


class Segmenter(_Predictor[Mask]):
    """Photos to `Mask`."""

    kind = "segmenter"

    def _answer(self, output_1: Tensor, seen: Frame) -> Mask:
        names = (BACKGROUND, *self.model_config.classes)
        window_HW = _mask_at_size(output_1, (seen.height, seen.width)).cpu()
        return Mask(seen.mask_on_photo(window_HW), names)


class Detector(_Predictor[Boxes]):
    """Photos to `Boxes`."""

    kind = "detector"

    def _answer(self, output_1: Tensor, seen: Frame) -> Boxes:
        (found,) = detect(output_1)
        return Boxes(
            seen.boxes_on_photo(found.boxes_N4),
            found.scores_N.cpu(),
            found.classes_N.cpu(),
            self.model_config.classes,
        )


def _mask_at_size(logits_1CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the likeliest class of each pixel, uint8 HW; logits are brought to `size`, bilinear.

    Some rows at a time: all classes' logits of a large photo would not fit in memory.
    """
    height, width = size
    tall_1CHW = F.interpolate(
        logits_1CHW, (height, logits_1CHW.shape[3]), mode="bilinear", align_corners=False
    )
    rows = max(1, STRIP_PIXELS // width)
    parts = []
    for top in range(0, height, rows):
        strip = tall_1CHW[:, :, top : top + rows]
        wide = F.interpolate(strip, (strip.shape[2], width), mode="bilinear", align_corners=False)
        parts.append(wide[0].argmax(dim=0).to(torch.uint8))
    return torch.cat(parts)
