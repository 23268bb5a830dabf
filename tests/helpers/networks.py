"""Small networks built from plain sizes, for tests."""

from __future__ import annotations

from typing import Any

from colorgan.models.detector import Detector
from colorgan.models.layers import NormName
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.unet import Classifier, Encoder, UNet


def small_encoder(
    image_size: int = 32,
    width: int = 4,
    *,
    norm: NormName = "batch",
    bias_before_norm: bool = False,
) -> Encoder:
    """Return the U-Net's encoder."""
    return Encoder(image_size=image_size, width=width, norm=norm, bias_before_norm=bias_before_norm)


def small_unet(
    image_size: int = 32,
    width: int = 4,
    *,
    norm: NormName = "batch",
    bias_before_norm: bool = False,
    **arguments: Any,
) -> UNet:
    """Return a U-Net whose encoder and decoder have the same norm."""
    encoder = small_encoder(image_size, width, norm=norm, bias_before_norm=bias_before_norm)
    return UNet(encoder, norm=norm, bias_before_norm=bias_before_norm, **arguments)


def small_classifier(
    image_size: int = 32, width: int = 4, *, bias_before_norm: bool = False, **arguments: Any
) -> Classifier:
    """Return a classifier on the U-Net's encoder."""
    return Classifier(
        small_encoder(image_size, width, bias_before_norm=bias_before_norm), **arguments
    )


def small_detector(
    image_size: int = 32, width: int = 4, *, norm: NormName = "batch", **arguments: Any
) -> Detector:
    """Return a detector on the U-Net's encoder."""
    encoder = small_encoder(image_size, width, norm=norm)
    return Detector(encoder, head_width=4 * width, norm=norm, **arguments)


def small_config(kind: str, num_outputs: int = 2, **fields: Any) -> ModelConfig:
    """Return a config of a 32 x 32 network of width 4."""
    # As small as five levels of strides allow.
    architecture = Architecture(
        image_size=32,
        width=4,
        norm="batch",
        bias_before_norm=False,
        dropout=0.5,
        num_outputs=num_outputs,
        head_width=8,
    )

    # Background has no name.
    unnamed = {"classifier": 0, "detector": 0, "segmenter": 1}.get(kind, num_outputs)
    classes = [f"class {index}" for index in range(num_outputs - unnamed)]
    return ModelConfig.model_validate(
        {
            "classes": classes,
            "kind": kind,
            "architecture": architecture,
            "ab_scale": 128.0,
            **fields,
        }
    )
