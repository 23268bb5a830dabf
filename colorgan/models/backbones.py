"""Backbones: what can stand in the U-Net encoder's place in a generator, by name.

    unet                                    colorgan/models/unet.py
    alexnet                                 colorgan/models/alexnet.py
    resnet50, vgg16_bn, convnext_tiny ...   any convolutional network of timm whose levels halve
    a name of your own                      register_backbone("name", Network)

A backbone sees luminance alone, L' (B, 1, H, W), and returns its levels, largest first. Commands
find a user's own where the environment variable COLORGAN_BACKBONES names the modules that register
them. It is the user's word alone: no recipe and no model folder can have a module imported.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from colorgan.errors import ArchitectureError, ModelFolderError
from colorgan.models.alexnet import AlexNet
from colorgan.models.layers import SelfDrawn
from colorgan.models.model_config import UNET
from colorgan.models.timm_encoder import (
    LuminanceTimmEncoder,
    TimmEncoder,
    check_pyramid,
    pretrained_encoder,
)
from colorgan.models.unet import FeaturePyramid
from colorgan.models.weights_file import WeightsFile

MODULES = "COLORGAN_BACKBONES"

_makers: dict[str, Callable[[], nn.Module]] = {}


def register_backbone(name: str, make: Callable[[], nn.Module]) -> None:
    """Make a network known as `network.encoder: NAME`.

    Args:
        name: Of the network in recipes and model folders; not one of timm's. A name that is known
            already is given to the new network.
        make: Returns it with fresh weights. It maps L' (B, 1, H, W) to a list of levels (B, C, h,
            w), largest first, and has `channels` and `strides`, one of each per level; strides
            double, from 2 or 4 on.

    Raises:
        ArchitectureError: The name is that of the U-Net.
    """
    if name == UNET:
        raise ArchitectureError(f"a backbone cannot be called {UNET}: choose another name")
    _makers[name] = make


register_backbone("alexnet", AlexNet)


class RegisteredEncoder(FeaturePyramid, SelfDrawn):
    """A network that was registered, as an encoder.

    Raises:
        ArchitectureError: It has no channels and strides, or they are not a pyramid's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.body = _makers[name]()
        try:
            self.channels = tuple(int(each) for each in self.body.channels)  # type: ignore[union-attr]
            self.strides = tuple(int(each) for each in self.body.strides)  # type: ignore[union-attr]
        except (AttributeError, TypeError, ValueError):
            raise ArchitectureError(
                f"the backbone {name} needs the attributes channels and strides, one whole number "
                "of each per level"
            ) from None

        halving = tuple(self.strides[0] << level for level in range(len(self.channels)))
        if self.strides[0] not in (2, 4) or self.strides != halving:
            raise ArchitectureError(
                f"the backbone {name} has strides {', '.join(map(str, self.strides))} for "
                f"{len(self.channels)} levels: they must double, from 2 or 4 on"
            )

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of each level, largest first."""
        return list(self.body(luminance_B1HW))


def luminance_encoder(name: str) -> RegisteredEncoder | LuminanceTimmEncoder:
    """Return a backbone that sees luminance, on the CPU, with weights that are to be drawn.

    Raises:
        ArchitectureError: No such backbone, or timm is not installed.
    """
    if name not in _makers:
        _import_modules()
    return RegisteredEncoder(name) if name in _makers else LuminanceTimmEncoder(name)


def _import_modules() -> None:
    """Import the modules of COLORGAN_BACKBONES; those that are imported already, not again."""
    for module in filter(None, os.environ.get(MODULES, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except ImportError as error:
            raise ArchitectureError(
                f"{MODULES} names {module.strip()!r}, which cannot be imported ({error}): is its "
                "folder on PYTHONPATH?"
            ) from None


def check_encoder(encoder: FeaturePyramid, image_size: int) -> None:
    """Refuse a backbone that cannot be trained at an image size; the U-Net fits its own.

    Args:
        encoder: On the CPU, with weights.
        image_size: Side of the square input.

    Raises:
        ModelFolderError: The backbone does not take this image size.
        ArchitectureError: A part of it would never learn.
    """
    if isinstance(encoder, TimmEncoder | RegisteredEncoder):
        check_pyramid(encoder, encoder.name, image_size)


def load_backbone_weights(encoder: FeaturePyramid, path: Path, image_size: int) -> None:
    """Give a backbone the weights of a file.

    Of timm's networks the file is timm's or torchvision's (`pretrained_encoder`), with a head or
    without; the three channels of a network for color are added up. Of another backbone it is
    safetensors with all of its weights under its own names.

    Raises:
        ModelFolderError: The file is missing, or of another network.
        ArchitectureError: The encoder is the U-Net's.
    """
    if isinstance(encoder, LuminanceTimmEncoder):
        source = pretrained_encoder(encoder.name, path, image_size, LuminanceTimmEncoder)
        encoder.load_state_dict(source.state_dict())
        return
    if not isinstance(encoder, RegisteredEncoder):
        raise ArchitectureError(
            "network.encoder_weights is for a backbone, and network.encoder is unet: start from a "
            "generator with init"
        )

    if not path.is_file():
        raise ModelFolderError(f"{path} is not a file")
    file = WeightsFile(path)
    # Compared whole before anything is read.
    file.check_fits(encoder.body)
    with torch.no_grad():
        for name, tensor in encoder.body.state_dict().items():
            tensor.copy_(file.read(name))
