"""Encoders of timm, with their weights or torchvision's: what pretraining by colouring can be compared with.

launcher/import_encoder.py makes a model folder of one; fine-tuning then starts from it as from a generator. It sees
what ours see, luminance alone, as the grey photo it stands for. Needs the extra `encoders`.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.color import denormalise_lab_B3HW, lab_to_rgb_B3HW
from colorgan.errors import GeneratorError, NetworkError
from colorgan.networks import FeaturePyramid


class TimmEncoder(FeaturePyramid):
    """A convolutional network of timm without its classifier; the levels of stride 2 (or 4) and deeper.

    Raises:
        NetworkError: timm is not installed, knows no such network, or its levels do not halve from one to the next.
    """

    def __init__(self, name: str, **timm_arguments: Any) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):  # also keeps names out that timm would fetch from a hub
            raise NetworkError(f"timm knows no network {name[:100]!r}: see timm.list_models()")
        try:
            self.body: nn.Module = timm.create_model(
                name, features_only=True, **{"pretrained": False, **timm_arguments}
            )
        except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
            raise NetworkError(f"timm's {name}: {_first_sentence(error)}") from None
        info: Any = self.body.feature_info
        channels, strides = info.channels(), info.reduction()
        self._first = sum(stride == 1 for stride in strides)
        self.channels, self.strides = tuple(channels[self._first :]), tuple(strides[self._first :])
        first = self.strides[0]
        if first not in (2, 4) or self.strides != tuple(first << level for level in range(len(self.strides))):
            raise NetworkError(
                f"timm's {name} has features of strides {', '.join(map(str, strides))}: a decoder needs each level at "
                "half the side of the one before, as convolutional networks such as resnet50 or convnext_tiny have"
            )
        settings: Any = self.body.pretrained_cfg
        self._mean, self._std = tuple(settings["mean"]), tuple(settings["std"])

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level, largest first."""
        features: list[Tensor] = self.body(self._photo(luminance_B1HW))
        return features[self._first :]

    def _photo(self, luminance_B1HW: Tensor) -> Tensor:
        """The grey photo with this luminance, normalised as timm's weights expect it; B x 3 x H x W."""
        grey_B3HW = lab_to_rgb_B3HW(denormalise_lab_B3HW(nn.functional.pad(luminance_B1HW, (0, 0, 0, 0, 0, 2))))
        mean, std = (grey_B3HW.new_tensor(part).view(3, 1, 1) for part in (self._mean, self._std))
        return (grey_B3HW - mean) / std


class Backbone(nn.Module):
    """Nothing but an encoder, under the name that it has in the networks of the tasks."""

    def __init__(self, encoder: FeaturePyramid) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level."""
        features: list[Tensor] = self.encoder(luminance_B1HW)
        return features


def pretrained_encoder(name: str, weights: Path | None, image_size: int) -> TimmEncoder:
    """Return timm's network with weights from a file of timm's or torchvision's, or with those that timm downloads.

    A file is read as safetensors or by `torch.load(weights_only=True)`; nothing of it is executed.

    Raises:
        GeneratorError: no such file, it is of another network, or the network does not take this image size.
        NetworkError: as in `TimmEncoder`.
    """
    if weights is not None and not weights.is_file():
        raise GeneratorError(f"--weights {weights} is no file")
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier's weights, which are not used
    overlay = {"pretrained_cfg_overlay": {"file": str(weights), "custom_load": False}} if weights else {}
    drawn = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                drawn.append(TimmEncoder(name, pretrained=True, **overlay))
            except NetworkError as error:
                raise GeneratorError(f"{weights or 'the download'} does not go into {error}") from None
            except Exception as error:  # whatever reading a file from elsewhere, or the network, may raise
                where = weights or "the download"
                raise GeneratorError(f"{where} cannot be read as weights of {name}: {_first_sentence(error)}") from None
    _check_all_loaded(*drawn, where=str(weights or "timm's weights"), name=name)
    _check_size(drawn[0], name, image_size)
    return drawn[0]


def _check_all_loaded(first: nn.Module, second: nn.Module, *, where: str, name: str) -> None:
    """timm takes what fits and says nothing of the rest: what two draws differ in has not come from the file."""
    theirs = dict(second.named_parameters())
    missing = [key for key, value in first.named_parameters() if not torch.equal(value, theirs[key])]
    if missing:
        raise GeneratorError(
            f"{where}: holds no weights for {len(missing)} of {len(theirs)} parts of timm's {name}, for one "
            f"{missing[0].removeprefix('body.')}: it is of another network"
        )


def _check_size(encoder: TimmEncoder, name: str, image_size: int) -> None:
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 1, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise GeneratorError(
            f"timm's {name} takes no pictures of {image_size}x{image_size}: {_first_sentence(error)}"
        ) from None


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0][:300] or type(error).__name__


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise NetworkError("encoders of timm need the extra `encoders`: pip install 'colorgan[encoders]'") from None
    except RuntimeError as error:  # torchvision's operators do not load
        raise NetworkError(
            f"timm needs torchvision, which was built for another torch ({_first_sentence(error)}): install "
            f"the torchvision that belongs to torch {torch.__version__}, from where that came"
        ) from None
