"""The networks: U-Net generator, PatchGAN discriminator, and the heads that downstream tasks put on the U-Net.

Layer order and sizes follow the reference code (Treneska et al., Sensors 2022, 22(4):1599; the pix2pix of Isola
et al. 2017). Nothing here knows of data, losses or ranks; components take plain arguments.

Shape legend: B batch, C channels, H = W = image size S (a power of two); `luminance_B1HW` is L' = L/50 - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.errors import NetworkError

NormName = Literal["batch", "instance"]
Inference = Literal["running", "paper"]
PatchPadding = Literal["same", "pix2pix"]

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 512
NUM_DROPOUT_BLOCKS = 3  # the first three decoder blocks (pix2pix)


def num_downsamplings(image_size: int) -> int:
    """Return log2(image_size): each encoder block halves the side, the last one leaves 1x1.

    Raises:
        NetworkError: `image_size` is not a power of two in [32, 512].
    """
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE or image_size & (image_size - 1):
        raise NetworkError(
            f"image size {image_size} does not fit the U-Net, which halves it down to 1: use 32, 64, 128, 256 or 512"
        )
    return image_size.bit_length() - 1


class KeyedDropout(nn.Module):
    """Dropout whose mask is a pure function of one int32 key a sample: no hidden random state.

    The same sample of the same step is masked alike on the CPU and on a GPU, on any number of ranks, in any
    micro-batch and after any resume. The hash is murmur3's finaliser in wrapping int32 arithmetic.
    """

    def __init__(self, probability: float, salt: int) -> None:
        super().__init__()
        self.probability = probability
        self.salt = salt
        self.keys_B: Tensor | None = None
        self.at_inference = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share `probability` of its elements zeroed and the rest scaled up; same shape."""
        if self.probability == 0.0 or not (self.training or self.at_inference):
            return x
        if self.keys_B is None or self.keys_B.shape[0] != x.shape[0]:
            raise NetworkError("dropout needs one key a sample: call set_dropout_keys(module, keys_B) first")
        index = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
        hashed = _mix(_mix(self.keys_B.to(x.device) + self.salt)[:, None] ^ index[None, :])
        keep = hashed >= int(self.probability * 2**32) - 2**31
        return x * keep.view_as(x).to(x.dtype) / (1.0 - self.probability)


def _mix(h: Tensor) -> Tensor:
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85ebca6b
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xc2b2ae35
    return h ^ ((h >> 16) & 0xFFFF)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that can use the batch's own statistics at inference without touching the running ones."""

    batch_statistics_at_inference = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (B, C, H, W) over B, H and W; same shape."""
        if self.training or not self.batch_statistics_at_inference:
            return super().forward(input)
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


def _norm(name: NormName, channels: int) -> nn.Module:
    return BatchNorm(channels) if name == "batch" else nn.InstanceNorm2d(channels, affine=True)


class _Down(nn.Module):
    """Convolution 4x4, optional norm, activation. With stride 2 it halves the side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        norm: NormName | None,
        bias: bool,
        activation: nn.Module,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=bias or norm is None)
        self.norm = _norm(norm, outputs) if norm else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class _Up(nn.Module):
    """Transposed convolution 4x4, stride 2, norm, dropout, skip concatenated, ReLU: doubles the side."""

    def __init__(self, inputs: int, outputs: int, *, norm: NormName, bias: bool, dropout: float, salt: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)
        self.norm = _norm(norm, outputs)
        self.dropout = KeyedDropout(dropout, salt)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(x)))
        return F.relu(torch.cat([x, skip], dim=1))


class FeaturePyramid(nn.Module):
    """An encoder: L' (B, 1, S, S) to a list of features, largest first, each with half the side of the one before.

    Attributes:
        channels: of each level.
        strides: of each level; its side is S / stride.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class Encoder(FeaturePyramid):
    """C64-C128-C256-C512-C512-... and a bottleneck without norm, for an image of `image_size`.

    `channels[i]` is the width of level i; level i has side `image_size / 2**(i + 1)`; the last is the 1x1 bottleneck.
    """

    def __init__(self, *, image_size: int, width: int, norm: NormName, bias_before_norm: bool) -> None:
        super().__init__()
        levels = num_downsamplings(image_size)
        self.channels = tuple(width * min(2**level, 8) for level in range(levels))
        self.strides = tuple(2 ** (level + 1) for level in range(levels))
        inputs = (1, *self.channels[:-1])
        self.blocks = nn.ModuleList()
        for level, outputs in enumerate(self.channels):
            bottleneck = level == levels - 1
            self.blocks.append(
                _Down(
                    inputs[level],
                    outputs,
                    norm=None if level == 0 or bottleneck else norm,
                    bias=bias_before_norm,
                    activation=nn.ReLU() if bottleneck else nn.LeakyReLU(0.2),
                )
            )

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features of every level, largest first; the last is B x 8*width x 1 x 1."""
        features: list[Tensor] = []
        x = luminance_B1HW
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features


def decoder_blocks(
    encoder_channels: tuple[int, ...], *, norm: NormName, bias_before_norm: bool, dropout: float
) -> nn.ModuleList:
    """Return the decoder's blocks: block i doubles the side, to that of the encoder's i-th level from the last but one,
    and gives twice the channels of it."""
    blocks = nn.ModuleList()
    inputs = encoder_channels[-1]
    for index, outputs in enumerate(reversed(encoder_channels[:-1])):
        probability = dropout if index < NUM_DROPOUT_BLOCKS else 0.0
        blocks.append(_Up(inputs, outputs, norm=norm, bias=bias_before_norm, dropout=probability, salt=index + 1))
        inputs = 2 * outputs
    return blocks


def climb(blocks: Iterable[nn.Module], features: list[Tensor]) -> Tensor:
    """Return what the decoder's first blocks, or all of them, make of the encoder's features."""
    x = features[-1]
    for block, skip in zip(blocks, reversed(features[:-1]), strict=False):
        x = block(x, skip)
    return x


class Decoder(nn.Module):
    """CD512-CD512-CD512-C512-C256-C128-C64 with skips, then a transposed convolution to `num_outputs` channels."""

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        *,
        num_outputs: int,
        norm: NormName,
        bias_before_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.blocks = decoder_blocks(encoder_channels, norm=norm, bias_before_norm=bias_before_norm, dropout=dropout)
        inputs = encoder_channels[0] * (2 if len(self.blocks) else 1)
        self.output = nn.ConvTranspose2d(inputs, num_outputs, 4, 2, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return B x num_outputs x S x S, before any squashing."""
        out: Tensor = self.output(climb(self.blocks, features))
        return out


class UNet(nn.Module):
    """Encoder and decoder. `tanh=True` is the generator (two chroma channels); `False` gives logits (segmentation).

    Another `encoder` takes the place of the U-Net's own, here as in the networks below.
    """

    def __init__(
        self,
        *,
        image_size: int,
        width: int,
        num_outputs: int = 2,
        tanh: bool = True,
        norm: NormName = "batch",
        bias_before_norm: bool = False,
        dropout: float = 0.5,
        encoder: FeaturePyramid | None = None,
    ) -> None:
        super().__init__()
        self.tanh = tanh
        self.encoder = encoder or Encoder(
            image_size=image_size, width=width, norm=norm, bias_before_norm=bias_before_norm
        )
        self.decoder = Decoder(
            self.encoder.channels,
            num_outputs=num_outputs,
            norm=norm,
            bias_before_norm=bias_before_norm,
            dropout=dropout,
        )

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Map L' (B, 1, S, S) to B x num_outputs x S x S; in [-1, 1] when `tanh`."""
        out: Tensor = self.decoder(self.encoder(luminance_B1HW))
        if out.shape[-1] != luminance_B1HW.shape[-1]:  # an encoder whose first level has stride 4
            # Nearest: the gradient of a bilinear one adds in any order on a GPU.
            out = F.interpolate(out, size=luminance_B1HW.shape[-2:], mode="nearest")
        return torch.tanh(out) if self.tanh else out


class Classifier(nn.Module):
    """Encoder, its last level averaged (1x1 in the U-Net), two hidden layers with ReLU and dropout 0.5, one logit a
    class (VGG's head)."""

    def __init__(
        self,
        *,
        image_size: int,
        width: int,
        num_classes: int,
        hidden_width: int = 4096,
        norm: NormName = "batch",
        bias_before_norm: bool = False,
        dropout: float = 0.5,
        encoder: FeaturePyramid | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(
            image_size=image_size, width=width, norm=norm, bias_before_norm=bias_before_norm
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.encoder.channels[-1], hidden_width),
            nn.ReLU(),
            KeyedDropout(dropout, salt=101),
            nn.Linear(hidden_width, hidden_width),
            nn.ReLU(),
            KeyedDropout(dropout, salt=102),
            nn.Linear(hidden_width, num_classes),
        )

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Map L' (B, 1, S, S) to logits (B, num_classes)."""
        out: Tensor = self.head(F.adaptive_avg_pool2d(self.encoder(luminance_B1HW)[-1], 1))
        return out


class Discriminator(nn.Module):
    """70x70 PatchGAN over L' and ab' together: one logit a patch.

    The reference code has four strided blocks and "same" padding (a 16x16 map at 256); its text and pix2pix have
    three and padding 1 (30x30). Both are here: `num_strided_blocks` and `padding`.
    """

    def __init__(
        self,
        *,
        width: int,
        num_strided_blocks: int = 4,
        padding: PatchPadding = "same",
        norm: NormName = "batch",
        bias_before_norm: bool = False,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = 3
        for level in range(num_strided_blocks + 1):
            outputs = width * min(2**level, 8)
            strided = level < num_strided_blocks
            if not strided and padding == "same":
                blocks.append(_pad_to_same())
            blocks.append(
                _Down(
                    inputs,
                    outputs,
                    norm=norm if level else None,
                    bias=bias_before_norm,
                    activation=nn.LeakyReLU(0.2),
                    stride=2 if strided else 1,
                )
            )
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pad = _pad_to_same() if padding == "same" else nn.Identity()
        self.output = nn.Conv2d(inputs, 1, 4, 1, 1)

    def forward(self, luminance_B1HW: Tensor, chroma_B2HW: Tensor) -> Tensor:
        """Return one logit a patch, B x 1 x h x w; positive means real."""
        out: Tensor = self.output(self.pad(self.blocks(torch.cat([luminance_B1HW, chroma_B2HW], dim=1))))
        return out


def _pad_to_same() -> nn.ZeroPad2d:
    """With a 4x4 convolution of stride 1 and padding 1: Keras' "same" (one before, two after)."""
    return nn.ZeroPad2d((0, 1, 0, 1))


def initialise(module: nn.Module, seed: int) -> None:
    """Draw every convolution and dense weight from N(0, 0.02), biases 0, norms 1 and 0; a function of `seed` alone."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            with torch.no_grad():
                part.weight.copy_(torch.randn(part.weight.shape, generator=random) * 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def set_dropout_keys(module: nn.Module, keys_B: Tensor) -> None:
    """Give every dropout layer of `module` the keys (int32, one a sample) of the batch that comes next."""
    for part in module.modules():
        if isinstance(part, KeyedDropout):
            part.keys_B = keys_B


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While open, `module` is in eval mode; each of its parts then goes back to the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def using_inference(module: nn.Module, inference: Inference) -> Iterator[None]:
    """While open, `module.eval()` means `inference` (see `set_inference`); then what it meant before."""
    before = [(part, part.batch_statistics_at_inference) for part in module.modules() if isinstance(part, BatchNorm)]
    dropouts = [(part, part.at_inference) for part in module.modules() if isinstance(part, KeyedDropout)]
    set_inference(module, inference)
    try:
        yield
    finally:
        for norm, flag in before:
            norm.batch_statistics_at_inference = flag
        for dropout, flag in dropouts:
            dropout.at_inference = flag


def set_inference(module: nn.Module, inference: Inference) -> None:
    """Choose what `module.eval()` means: "running" statistics without dropout, or "paper": the batch's own
    statistics and dropout left on (pix2pix's way; the result then depends on the other pictures of the batch)."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.batch_statistics_at_inference = inference == "paper"
        elif isinstance(part, KeyedDropout):
            part.at_inference = inference == "paper"
