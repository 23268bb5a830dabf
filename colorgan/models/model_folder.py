"""Models on disk: a folder of `model.safetensors` and `config.json`, all that commands need.

    checkpoint -> consolidate -> generator/ -> fine-tuning, evaluation, colorize
    fine-tuning -> model/ -> evaluation
    timm's or torchvision's weights -> import_encoder -> encoder/ -> fine-tuning

`kind` is generator (luminance to chroma), encoder, classifier, segmenter or detector. Nothing is
ever unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorgan.devices import exact_float32
from colorgan.errors import ArchitectureError, ModelFolderError
from colorgan.files import replacing_folder, what_is
from colorgan.models.backbones import luminance_encoder
from colorgan.models.detector import Detector
from colorgan.models.model_config import (
    CONFIG,
    UNET,
    WEIGHTS,
    Architecture,
    ModelConfig,
    read_config,
)
from colorgan.models.modes import evaluating, using_inference
from colorgan.models.timm_encoder import Backbone, TimmEncoder
from colorgan.models.unet import Classifier, ClassUNet, Encoder, FeaturePyramid, UNet
from colorgan.models.weights_file import WeightsFile, save_tensors


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config, on the CPU, with undefined weights.

    Raises:
        ArchitectureError: It cannot have these sizes, or its encoder is not known.
    """
    a = config.architecture
    # Encoder first in every network: `initialise` draws in this order, so seeds keep their meaning.
    encoder = build_encoder(a)
    decoding: dict[str, Any] = {
        "norm": a.norm,
        "bias_before_norm": a.bias_before_norm,
        "dropout": a.dropout,
    }
    match config.kind:
        case "encoder":
            return Backbone(encoder)
        case "classifier":
            return Classifier(encoder, num_classes=a.num_outputs, hidden_width=a.head_width)
        case "detector":
            return Detector(encoder, head_width=4 * a.width, num_classes=a.num_outputs, **decoding)
        case "generator" if config.target == "classes":
            return ClassUNet(encoder, ab_scale=config.ab_scale, **decoding)
        case "generator":
            skips = config.target != "luminance"
            return UNet(encoder, num_outputs=a.num_outputs, tanh=True, skips=skips, **decoding)
        case "segmenter":
            return UNet(encoder, num_outputs=a.num_outputs, tanh=False, **decoding)


def build_encoder(a: Architecture) -> FeaturePyramid:
    """Return the encoder of an architecture, on the CPU, with undefined weights.

    Raises:
        ArchitectureError: It cannot have these sizes, or is not known.
    """
    if a.encoder != UNET:
        return (
            TimmEncoder(a.encoder) if a.encoder_input == "photo" else luminance_encoder(a.encoder)
        )
    return Encoder(
        image_size=a.image_size, width=a.width, norm=a.norm, bias_before_norm=a.bias_before_norm
    )


def empty_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config on the meta device: shapes without memory.

    Raises:
        ModelFolderError: The config asks for sizes that the network cannot have.
    """
    try:
        # A config may ask for terabytes; shapes alone are compared with the file first.
        with torch.device("meta"):
            return build_model(config)
    except (ArchitectureError, RuntimeError) as error:
        raise ModelFolderError(f"{CONFIG}: {str(error).splitlines()[0]}") from None


def load_model(folder: Path, *kinds: str) -> tuple[nn.Module, ModelConfig]:
    """Return the network (on the CPU, in eval mode) and config of a model folder.

    Memory is allocated only after the file was found to hold the weights; bfloat16 ones become
    float32.

    Args:
        folder: The model folder.
        kinds: Kinds that are accepted; none given: any.

    Raises:
        ModelFolderError: Not a model folder, of another kind, or weights that do not fit the
            config.
    """
    config = read_config(folder)
    if kinds and config.kind not in kinds:
        raise ModelFolderError(
            f"{folder} holds a {config.kind}, a {' or '.join(kinds)} is needed here"
        )

    try:
        module = empty_model(config)
    except ArchitectureError as error:
        raise ModelFolderError(f"{folder / CONFIG}: {error}") from None

    file = WeightsFile(folder / WEIGHTS)
    file.check_fits(module)
    with torch.no_grad():
        if config.architecture.encoder == UNET:
            module = module.to_empty(device="cpu")
        else:
            # Networks from elsewhere may have buffers that are in no file: build them again, with
            # memory.
            module = build_model(config)
        for name, tensor in module.state_dict().items():
            tensor.copy_(file.read(name))
    return module.eval(), config


def save_model(out: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write a network and its config as a model folder, whole or not at all.

    Raises:
        ModelFolderError: `out` cannot be a model folder.
    """
    check_model_folder(out, config.kind)
    with replacing_folder(out) as folder:
        write_model(folder, module, config)


def write_model(folder: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write the two files of a model folder into an existing folder."""
    # Row-major: safetensors stores no strides, and NHWC weights would come back transposed.
    weights = {
        name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()
    }
    save_tensors(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")


def check_model_folder(out: Path, kind: str) -> None:
    """Refuse to write a model over something else than an older model of its kind.

    Args:
        out: The folder to write: new, empty, or with an older model.
        kind: Of the model that is written.

    Raises:
        ModelFolderError: `out` holds something else.
    """
    out = out.resolve()
    if not out.name or out.is_file():
        raise ModelFolderError(
            f"{out} cannot be the folder of a model: name one that is new, or an older model's"
        )
    if (out / CONFIG).is_file():
        old = read_config(out)
        if old.kind != kind:
            raise ModelFolderError(
                f"{out} holds a {old.kind} and is not replaced by a {kind}: choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        held = what_is(out) or "other files than a model's"
        raise ModelFolderError(f"{out} holds {held}: choose another --out")


def probe(module: nn.Module, image_size: int, device: torch.device) -> Tensor:
    """Return the network's output for a fixed luminance pattern, with running statistics.

    Float32 on the CPU, of one image.

    Args:
        module: On `device`; left in the mode it was in.
        image_size: Side of the pattern.
        device: Where to compute.
    """
    # A smooth pattern without randomness: any version of torch makes the same one.
    row = torch.linspace(-1.0, 1.0, image_size)
    pattern = torch.sin(9.0 * row)[:, None] * torch.cos(7.0 * row)[None, :] * 0.9
    with (
        evaluating(module),
        # The batch's own statistics of a single image would hide differences in the running ones.
        using_inference(module, "running"),
        torch.no_grad(),
        exact_float32(),
    ):
        output: Tensor = module(pattern[None, None].to(device)).float().cpu()
    return output
