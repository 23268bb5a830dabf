"""Encoders of timm, with their weights or torchvision's.

What pretraining by coloring can be compared with.

launcher/import_encoder.py makes a model folder of one; fine-tuning then starts from it as from a
generator. It sees what ours see, luminance alone, as the grey photo it stands for. Needs the extra
`encoders`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.color import denormalise_lab_B3HW, lab_to_rgb_B3HW
from colorgan.errors import ArchitectureError, ModelFolderError
from colorgan.models.layers import SelfDrawn
from colorgan.models.modes import evaluating
from colorgan.models.unet import FeaturePyramid
from shards.extras import install_command


class TimmEncoder(FeaturePyramid):
    """A convolutional network of timm without its classifier, which sees the grey photo.

    The levels of stride 2 (or 4) and deeper.

    Raises:
        ArchitectureError: timm is not installed, knows no such network, or its levels do not halve
            from one to the next.
    """

    sees_luminance = False

    def __init__(self, name: str, **timm_arguments: Any) -> None:
        super().__init__()
        self.name = name
        timm = import_timm()
        if not timm.is_model(name):  # also keeps names out that timm would fetch from a hub
            raise ArchitectureError(f"timm knows no network {name[:100]!r}: see timm.list_models()")
        try:
            self.body: nn.Module = timm.create_model(name, features_only=True, **timm_arguments)
        except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
            raise ArchitectureError(f"timm's {name}: {_reason(error)}") from None

        # Levels of stride 1, which some networks have, are left out.
        info: Any = self.body.feature_info
        channels, strides = info.channels(), info.reduction()
        self._first = sum(stride == 1 for stride in strides)
        self.channels, self.strides = tuple(channels[self._first :]), tuple(strides[self._first :])
        first = self.strides[0]
        halving = tuple(first << level for level in range(len(self.strides)))
        if first not in (2, 4) or self.strides != halving:
            raise ArchitectureError(
                f"timm's {name} has features of strides {', '.join(map(str, strides))}: a decoder "
                "needs each level at half the side of the one before, as convolutional networks "
                "such as resnet50 or convnext_tiny have"
            )

        settings: Any = self.body.pretrained_cfg
        self._mean, self._std = tuple(settings["mean"]), tuple(settings["std"])

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level, largest first."""
        return self._levels(self._photo(luminance_B1HW))

    def _levels(self, inputs_BCHW: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.body(inputs_BCHW)
        return features[self._first :]

    def _photo(self, luminance_B1HW: Tensor) -> Tensor:
        """Return the grey photo with this luminance, normalised as timm's weights expect it.

        B x 3 x H x W.
        """
        # a = b = 0: the grey photo of this luminance, which these weights can make sense of.
        lab_B3HW = nn.functional.pad(luminance_B1HW, (0, 0, 0, 0, 0, 2))
        grey_B3HW = lab_to_rgb_B3HW(denormalise_lab_B3HW(lab_B3HW))
        # Number by number: a tensor of them would be copied to the GPU in each step, which waits.
        channels = zip(grey_B3HW.unbind(1), self._mean, self._std, strict=True)
        return torch.stack([(grey_BHW - mean) / std for grey_BHW, mean, std in channels], dim=1)


class LuminanceTimmEncoder(TimmEncoder, SelfDrawn):
    """A convolutional network of timm with one input channel, which sees L' itself.

    Its weights are drawn by timm's rule for it.
    """

    sees_luminance = True

    def __init__(self, name: str, **timm_arguments: Any) -> None:
        super().__init__(name, in_chans=1, **timm_arguments)

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level, largest first."""
        return self._levels(luminance_B1HW)


class Backbone(nn.Module):
    """An encoder alone, under the name that it has in the networks of the tasks."""

    def __init__(self, encoder: FeaturePyramid) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level."""
        features: list[Tensor] = self.encoder(luminance_B1HW)
        return features


def pretrained_encoder(
    name: str, weights: Path | None, image_size: int, kind: type[TimmEncoder] = TimmEncoder
) -> TimmEncoder:
    """Return timm's network with weights from a file, or with those that timm downloads.

    The file is timm's or torchvision's.

    A file is read as safetensors or by `torch.load(weights_only=True)`; nothing of it is executed.
    Where the encoder has one input channel and the file three, timm adds the three up.

    Raises:
        ModelFolderError: no such file, it is of another network, or the network does not take this
            image size.
        ArchitectureError: as in `TimmEncoder`, or not all of the network has a say in its last
            level.
    """
    if weights is not None and not weights.is_file():
        raise ModelFolderError(f"{weights} is not a file")

    # Before anything is downloaded.
    check_pyramid(kind(name, pretrained=False), f"timm's {name}", image_size)

    # It warns of the classifier's weights, which are not used.
    logging.getLogger("timm").setLevel(logging.ERROR)
    overlay: dict[str, Any] = {}
    if weights:
        overlay["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False}

    where = weights or "the download"
    try:
        with _missing_keys() as missing:
            encoder = kind(name, pretrained=True, **overlay)
    except Exception as error:  # whatever reading a file from elsewhere, or the network, may raise
        reason = _reason(error).removeprefix(f"timm's {name}: ")
        raise ModelFolderError(
            f"{where} cannot be read as weights of timm's {name}: {reason}"
        ) from None

    classifier = import_timm().get_pretrained_cfg_value(name, "classifier") or ()
    classifiers = [classifier] if isinstance(classifier, str) else classifier
    unused = tuple(f"{each}." for each in classifiers)
    # The classifier may be missing: it is thrown away.
    lacking = [key for key in missing if not key.startswith(unused)]
    if lacking:
        raise ModelFolderError(
            f"{where} holds no weights for {len(lacking)} parts of timm's {name}, for one "
            f"{lacking[0]}: it is of another network, or its layers are named otherwise than timm's"
        )
    return encoder


@contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """While open, collect the keys that any `load_state_dict` finds missing.

    timm loads what a file has, and reports what is missing in its log only.
    """
    missing: list[str] = []
    # Patched for the one call: timm offers no way to ask what was missing.
    load = nn.Module.load_state_dict

    def noting(self: nn.Module, *args: Any, **keywords: Any) -> Any:
        result = load(self, *args, **keywords)
        missing.extend(result.missing_keys)
        return result

    nn.Module.load_state_dict = noting  # type: ignore[method-assign]
    try:
        yield missing
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def check_pyramid(encoder: FeaturePyramid, title: str, image_size: int) -> None:
    """Refuse levels of unexpected sizes, and parts that a head on the last level cannot train.

    Args:
        encoder: With weights, on the CPU.
        title: Of the encoder, in an error.
        image_size: Side of the square input.

    Raises:
        ModelFolderError: It does not take this image size, or a decoder could not take its levels.
        ArchitectureError: Not all of it has a say in its last level.
    """
    with evaluating(encoder):
        try:
            features = encoder(torch.zeros(1, 1, image_size, image_size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ModelFolderError(
                f"{title} takes no pictures of {image_size}x{image_size}: {_reason(error)}"
            ) from None

    given = [tuple(level.shape[1:]) for level in features]
    if not _is_pyramid(given, encoder, image_size):
        expected = [
            (channels, image_size // stride, image_size // stride)
            for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]
        raise ModelFolderError(
            f"{title} gives features of {given} for {image_size}x{image_size}, not of {expected}"
        )

    # A part without a gradient here would never learn, and be compared as if it had.
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    gradients = torch.autograd.grad(features[-1].sum(), parameters, allow_unused=True)
    idle = [name for name, each in zip(names, gradients, strict=True) if each is None]
    if idle:
        raise ArchitectureError(
            f"{title}: {idle[0].removeprefix('body.')} and {len(idle) - 1} other parts have no say "
            "in its last level"
        )


def _is_pyramid(
    shapes: Sequence[tuple[int, ...]], encoder: FeaturePyramid, image_size: int
) -> bool:
    """Tell if the levels have their channels and about the sides that their strides give."""
    if len(shapes) != len(encoder.channels):
        return False
    for shape, channels, stride in zip(shapes, encoder.channels, encoder.strides, strict=True):
        side = shape[-1]
        # Without padding, a convolution or pooling loses up to a row: 55 of 56 in AlexNet.
        near = side >= 1 and abs(side * stride - image_size) < 2 * stride
        if shape != (channels, side, side) or not near:
            return False
    return True


def _reason(error: Exception) -> str:
    """Return the first sentence with a reason; torch's lists of mismatches have a heading."""
    lines = str(error).strip().split("\n")
    return lines[min(1, len(lines) - 1)].strip().split(". ")[0][:300] or type(error).__name__


def import_timm() -> Any:
    """Return timm.

    Raises:
        ArchitectureError: It is not installed, or its torchvision is of another torch.
    """
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise ArchitectureError(
            f"encoders of timm need timm, which is not installed: {install_command('encoders')}"
        ) from None
    except RuntimeError as error:  # torchvision's operators do not load
        raise ArchitectureError(
            "timm needs torchvision, but the one here was built for another torch "
            f"({_reason(error)}): install the torchvision that belongs to torch "
            f"{torch.__version__}, from where that came"
        ) from None
