"""An encoder's weights under the names by which other libraries load them.

    timm         all of timm.create_model(NAME, in_chans=1, num_classes=N): loads strictly
    torchvision  torchvision.models.NAME() without its classifier: ResNets, VGGs, AlexNet
    safetensors  the encoder's own module

With `rgb` the first convolution has three channels. It is spread by the shares of red, green and
blue in luma, which add up to 1: for an image whose channels are equal, features are those of the
one channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.alexnet import AlexNet
from colorgan.models.backbones import RegisteredEncoder
from colorgan.models.modes import evaluating
from colorgan.models.timm_encoder import LuminanceTimmEncoder, TimmEncoder, import_timm
from colorgan.models.unet import FeaturePyramid

Format = Literal["timm", "torchvision", "safetensors"]

# Red, green and blue in luma (ITU-R BT.601). Of all shares that add up to 1, none is nearer to
# lightness by more than 0.001 over the colors of sRGB (least squares).
LUMA = (0.299, 0.587, 0.114)
# Of the largest feature: one channel and three add up in another order.
ROUNDING = 1e-4
# Where torchvision's AlexNet has its convolutions.
ALEXNET_LAYERS = (0, 3, 6, 8, 10)
TORCHVISION_NAMES = re.compile(
    r"resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext50_32x4d|vgg(11|13|16|19)(_bn)?"
)


def exported(encoder: FeaturePyramid, format: Format, *, rgb: bool) -> dict[str, Tensor]:
    """Return what an encoder learned, in tensors under another library's names.

    Args:
        encoder: On the CPU; one that sees luminance, for other formats than safetensors.
        format: The names.
        rgb: Give the first convolution three channels; for timm's and torchvision's names.

    Raises:
        UsageError: The library has no network like it, or `rgb` does not go with the format.
        ArchitectureError: timm is not installed.
    """
    if format == "safetensors":
        if rgb:
            raise UsageError("rgb is for the formats timm and torchvision: leave it out")
        body = encoder.body if isinstance(encoder, RegisteredEncoder | TimmEncoder) else encoder
        assert isinstance(body, nn.Module)
        return dict(body.state_dict())

    if isinstance(encoder, RegisteredEncoder) and isinstance(encoder.body, AlexNet):
        if format == "timm":
            raise UsageError("timm has no AlexNet: use the format torchvision")
        return _alexnet(encoder.body, rgb=rgb)

    if not isinstance(encoder, LuminanceTimmEncoder):
        raise UsageError(
            f"the format {format} is for generators with a network of timm as their encoder "
            "(network.encoder), and what was trained from them: use the format safetensors"
        )
    if format == "torchvision" and TORCHVISION_NAMES.fullmatch(encoder.name) is None:
        raise UsageError(f"torchvision does not name layers as {encoder.name}: use the format timm")
    return _timm_names(encoder, _timm_network(encoder, 0, rgb=rgb).state_dict())


def with_head(
    encoder: LuminanceTimmEncoder, learned: Mapping[str, Tensor], num_classes: int, *, rgb: bool
) -> dict[str, Tensor]:
    """Return the weights of timm's whole network: what was learned, and the rest as timm draws it.

    Args:
        encoder: Whose network it is.
        learned: As `exported` returns it for timm.
        num_classes: Of the classifier; 0 for none.
        rgb: As in `exported`.
    """
    # Drawn from a seed, so that the same model gives the same file.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = _timm_network(encoder, num_classes, rgb=rgb)
    return {**network.state_dict(), **learned}


def _timm_network(encoder: LuminanceTimmEncoder, num_classes: int, *, rgb: bool) -> nn.Module:
    network: nn.Module = import_timm().create_model(
        encoder.name, in_chans=3 if rgb else 1, num_classes=num_classes
    )
    return network


def _timm_names(encoder: LuminanceTimmEncoder, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors by the names of timm's whole network, in its shapes."""
    # As features, timm names some layers with an underscore: stages_0 for stages.0.
    places = {name.replace(".", "_"): name for name in network}
    renamed: dict[str, Tensor] = {}
    for name, tensor in encoder.body.state_dict().items():
        place = places.get(name.replace(".", "_"))
        if place is None:
            raise ModelFolderError(
                f"timm's {encoder.name} has no layer for {name}: use the format safetensors"
            )
        # The convolution that sees the image is the one whose channels differ.
        is_first = tensor.ndim == 4 and tensor.shape[1] != network[place].shape[1]
        renamed[place] = spread(tensor) if is_first else tensor
    return renamed


def spread(kernel_O1hw: Tensor) -> Tensor:
    """Return a kernel of three channels that add up to the one: O x 3 x h x w."""
    luma = torch.tensor(LUMA, dtype=torch.float64)
    return (kernel_O1hw.double() * luma.view(1, 3, 1, 1)).to(kernel_O1hw.dtype)


def _alexnet(network: AlexNet, *, rgb: bool) -> dict[str, Tensor]:
    """Return torchvision's AlexNet: norms, as they are at inference, merged into convolutions."""
    convolutions = [each for each in network.features if isinstance(each, nn.Conv2d)]
    norms = [each for each in network.features if isinstance(each, nn.BatchNorm2d)]
    weights: dict[str, Tensor] = {}
    for layer, convolution, norm in zip(ALEXNET_LAYERS, convolutions, norms, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        # In float64, so that merging adds no error of its own.
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        kernel = convolution.weight.double() * scale.view(-1, 1, 1, 1)
        bias = norm.bias.double() - norm.running_mean.double() * scale
        if layer == 0 and rgb:
            kernel = spread(kernel)
        weights[f"features.{layer}.weight"] = kernel.float()
        weights[f"features.{layer}.bias"] = bias.float()
    return {name: tensor.detach() for name, tensor in weights.items()}


def timm_difference(
    encoder: LuminanceTimmEncoder, path: Path, num_classes: int, image_size: int, *, rgb: bool
) -> float:
    """Load an exported file as timm's users do; return how far its features are from ours.

    It is loaded strictly, then its features are compared on a fixed pattern of luminance, with
    `rgb` in three equal channels.

    Raises:
        ModelFolderError: timm does not load it, or features differ by more than rounding.
    """
    row = torch.linspace(-1.0, 1.0, image_size)
    pattern = (torch.sin(9.0 * row)[:, None] * torch.cos(7.0 * row)[None, :])[None, None]
    with torch.no_grad(), evaluating(encoder):
        ours = encoder(pattern)
        features = _loaded_by_timm(encoder.name, path, num_classes, channels=3 if rgb else 1)
        theirs = features(pattern.expand(-1, 3 if rgb else 1, -1, -1))[-len(ours) :]

    difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    largest = max(float(level.abs().max()) for level in ours)
    # Written so that NaN is refused, too.
    if not difference <= ROUNDING * max(largest, 1.0):
        raise ModelFolderError(
            f"{path}: timm's features differ by {difference:.2g} from the encoder's"
        )
    return difference


def _loaded_by_timm(name: str, path: Path, num_classes: int, channels: int) -> Any:
    """Return timm's features of a file that its whole network has loaded strictly."""
    timm = import_timm()
    # timm tells the kind of a file by the end of its name.
    link = path.with_name(f"{path.name}.safetensors")
    link.hardlink_to(path)
    try:
        words = {"in_chans": channels, "num_classes": num_classes, "checkpoint_path": str(link)}
        timm.create_model(name, **words)
        overlay = {"file": str(link), "custom_load": False}
        features: nn.Module = timm.create_model(
            name,
            features_only=True,
            in_chans=channels,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        raise ModelFolderError(f"{path} is not loaded by timm: {reason}") from None
    finally:
        link.unlink()
    return features.eval()
