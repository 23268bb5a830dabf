"""An encoder to take along: features of photos of any size, by timm's conventions.

    encoder = Encoder.from_pretrained("runs/pretrain/generator")      # or "user/name" on the hub
    levels = encoder(images_B3HW)                                     # strides 2, 4, 8, 16, 32
    encoder.channels, encoder.strides, encoder.feature_info

docs/python.md shows it in the detectors and segmenters of other libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.color import rgb_to_lightness_B1HW
from colorgan.devices import exact_float32
from colorgan.errors import UsageError
from colorgan.models import unet
from colorgan.models.model_config import ModelConfig
from colorgan.models.model_folder import load_model
from colorgan.models.modes import evaluating, set_inference
from colorgan.models.photo_input import as_photo, as_photos, check_floats
from colorgan.models.pretrained import find_model
from colorgan.models.unet import FeaturePyramid, encoder_of

# The deepest level that detectors and segmenters ask for, and timm's networks have.
MAX_STRIDE = 32


class FeatureInfo:
    """The levels' channels and strides, with the methods of timm's object of this name."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        self._levels = [
            {"num_chs": each, "reduction": stride, "module": f"level{index}", "index": index}
            for index, (each, stride) in enumerate(zip(channels, strides, strict=True))
        ]

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Return the channels of one level, of several, or of all."""
        return self._values("num_chs", index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Return the stride of one level, of several, or of all."""
        return self._values("reduction", index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Return the name of one level, of several, or of all."""
        return self._values("module", index)

    def get_dicts(self) -> list[dict[str, Any]]:
        """Return a mapping per level: num_chs, reduction, module, index."""
        return [dict(level) for level in self._levels]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._levels[index]

    def __len__(self) -> int:
        return len(self._levels)

    def _values(self, key: str, index: int | Sequence[int] | None) -> Any:
        if isinstance(index, int):
            return self._levels[index][key]
        chosen = range(len(self._levels)) if index is None else index
        return [self._levels[each][key] for each in chosen]


class Encoder(nn.Module):
    """Photos to features of several levels, largest first; can be trained further.

    Attributes:
        channels: Of each level.
        strides: Of each level.
        feature_info: Both, in timm's form.
        model_config: Of the model folder.
    """

    def __init__(self, encoder: FeaturePyramid, model_config: ModelConfig) -> None:
        super().__init__()
        num_levels = max(1, sum(stride <= MAX_STRIDE for stride in encoder.strides))
        if isinstance(encoder, unet.Encoder):
            # Its deeper blocks would halve small photos to nothing, and get no gradient.
            encoder.blocks = encoder.blocks[:num_levels]
        self.encoder = encoder
        self.model_config = model_config
        self.channels = tuple(encoder.channels[:num_levels])
        self.strides = tuple(encoder.strides[:num_levels])
        self.feature_info = FeatureInfo(self.channels, self.strides)
        self._has_seen_floats = False
        set_inference(encoder, "running")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of each level, float32 B x C x H / stride x W / stride.

        Sides that the deepest stride does not divide are first extended to the next multiple, to
        the right and below, by repeating the edge.

        Args:
            images: B x 3 x H x W sRGB or B x 1 x H x W grey of any size, uint8 or floats in [0, 1].

        Raises:
            UsageError: Another shape or type; floats outside [0, 1], on the first call only (later
                ones do not wait for a GPU to tell).
        """
        _check_batch(images)
        if images.is_floating_point() and not self._has_seen_floats:
            check_floats(images)
            self._has_seen_floats = True

        rgb = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        luminance_B1HW = rgb_to_lightness_B1HW(rgb.expand(-1, 3, -1, -1)) / 50.0 - 1.0
        height, width = luminance_B1HW.shape[-2:]
        below, right = -height % self.strides[-1], -width % self.strides[-1]
        if below or right:
            luminance_B1HW = F.pad(luminance_B1HW, (0, right, 0, below), mode="replicate")
        features: list[Tensor] = self.encoder(luminance_B1HW)
        return features[: len(self.strides)]

    def predict(self, images: Any) -> Any:
        """Return the features of photos in eval mode without gradients.

        Args:
            images: One photo as `colorgan.models.photo_input.as_photo` takes it (PIL, numpy or
                tensor), or several of any sizes.

        Returns:
            Of one photo a list with a tensor C x h x w per level; of several a list of those.

        Raises:
            UsageError: A photo could be read in two ways.
        """
        photos, is_one = as_photos(images)
        device = next(self.parameters()).device
        rows = []
        with evaluating(self), torch.inference_mode(), exact_float32():
            for photo in photos:
                levels = self(as_photo(photo)[None].to(device))
                rows.append([level[0] for level in levels])
        return rows[0] if is_one else rows

    @classmethod
    def from_pretrained(cls, name: str | Path, **keywords: Any) -> Encoder:
        """Load the encoder of any model folder, or of one on the hub; in eval mode, on the CPU.

        Args:
            name: A folder of any kind of model (generator, encoder, classifier, segmenter,
                detector), or `user/name` on the hub.
            keywords: As in `find_model`.

        Raises:
            ModelFolderError: There is none, or it is not ours; nothing of it was executed.
        """
        model, config = load_model(find_model(name, **keywords))
        return cls(encoder_of(model), config).eval()


def _check_batch(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise UsageError(
            f"an encoder is called with a tensor, not a {type(images).__name__}: "
            "encoder.predict takes photos of other kinds"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        shape = " x ".join(map(str, images.shape))
        raise UsageError(f"a batch is B x 3 x H x W or B x 1 x H x W, not {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        name = str(images.dtype).removeprefix("torch.")
        raise UsageError(f"a batch is uint8, or floats in [0, 1], not {name}")
