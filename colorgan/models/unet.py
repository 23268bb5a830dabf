"""The U-Net: its encoder and decoder, the generator and segmenter of both, the classifier.

Layer order and sizes follow the reference code (Treneska et al., Sensors 2022, 22(4):1599; the
pix2pix of Isola et al. 2017). Nothing here knows of data, losses or ranks; components take plain
arguments.

Shape legend: B batch, C channels, H = W = image size S (a power of two); `luminance_B1HW` is L' =
L/50 - 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.errors import ArchitectureError
from colorgan.models.color_classes import NUM_CLASSES, ColorClasses
from colorgan.models.layers import Down, KeyedDropout, NormName, Up, fitted

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 512
# The first three decoder blocks (pix2pix).
NUM_DROPOUT_BLOCKS = 3


def num_downsamplings(image_size: int) -> int:
    """Return log2(image_size): each encoder block halves the side, the last one leaves 1x1.

    Raises:
        ArchitectureError: `image_size` is not a power of two in [32, 512].
    """
    is_power_of_two = image_size & (image_size - 1) == 0
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE or not is_power_of_two:
        raise ArchitectureError(
            f"image size {image_size} does not fit the U-Net, which halves it down to 1: use 32, "
            "64, 128, 256 or 512"
        )
    return image_size.bit_length() - 1


class FeaturePyramid(nn.Module):
    """An encoder: L' (B, 1, S, S) to features, largest first, each half as large as the last.

    Attributes:
        channels: of each level.
        strides: of each level, doubling from the first, which is 2 or 4; its side is S / stride,
            where that is a whole number, or one near it.
        sees_luminance: False for one that gets the grey photo of the luminance in three channels:
            an imported encoder, which no generator was trained with.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    sees_luminance = True


def encoder_of(network: nn.Module) -> FeaturePyramid:
    """Return the encoder of a generator or a fine-tuned model."""
    encoder = network.encoder
    assert isinstance(encoder, FeaturePyramid)
    return encoder


class Encoder(FeaturePyramid):
    """C64-C128-C256-C512-C512-... and a bottleneck without norm, for an image of `image_size`.

    `channels[i]` is the width of level i; level i has side `image_size / 2**(i + 1)`; the last is
    the 1x1 bottleneck.
    """

    def __init__(
        self, *, image_size: int, width: int, norm: NormName, bias_before_norm: bool
    ) -> None:
        super().__init__()
        levels = num_downsamplings(image_size)
        # Widths double up to 8 times the first (pix2pix's C64 to C512).
        self.channels = tuple(width * min(2**level, 8) for level in range(levels))
        self.strides = tuple(2 ** (level + 1) for level in range(levels))
        inputs = (1, *self.channels[:-1])
        self.blocks = nn.ModuleList()
        for level, outputs in enumerate(self.channels):
            bottleneck = level == levels - 1
            self.blocks.append(
                Down(
                    inputs[level],
                    outputs,
                    # At 1x1 a batch of one would be normalised to zero.
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
    """Return the decoder's blocks, deepest first.

    Block i doubles the side, to that of the encoder's i-th level from the last but one, and gives
    twice its channels.
    """
    blocks = nn.ModuleList()
    inputs = encoder_channels[-1]

    for index, outputs in enumerate(reversed(encoder_channels[:-1])):
        probability = dropout if index < NUM_DROPOUT_BLOCKS else 0.0
        blocks.append(
            Up(
                inputs,
                outputs,
                norm=norm,
                bias=bias_before_norm,
                dropout=probability,
                # Each layer masks by another pattern under the same key.
                salt=index + 1,
            )
        )
        # The skip is concatenated, which doubles the channels.
        inputs = 2 * outputs
    return blocks


def run_decoder(blocks: Iterable[nn.Module], features: list[Tensor]) -> Tensor:
    """Return the output of some of the decoder's first blocks for the encoder's features."""
    x = features[-1]
    for block, skip in zip(blocks, reversed(features[:-1]), strict=False):
        x = block(x, skip)
    return x


class Decoder(nn.Module):
    """CD512-CD512-CD512-C512-C256-C128-C64 with skips, then a transposed convolution."""

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        *,
        num_outputs: int,
        norm: NormName,
        bias_before_norm: bool,
        dropout: float,
        doubles: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = decoder_blocks(
            encoder_channels, norm=norm, bias_before_norm=bias_before_norm, dropout=dropout
        )
        inputs = encoder_channels[0] * (2 if len(self.blocks) else 1)
        self.output: nn.Module = (
            nn.ConvTranspose2d(inputs, num_outputs, 4, 2, 1)
            if doubles
            else nn.Conv2d(inputs, num_outputs, 1)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return B x num_outputs x S x S (S/2 if not `doubles`), before any squashing."""
        out: Tensor = self.output(run_decoder(self.blocks, features))
        return out


class UNet(nn.Module):
    """Encoder and decoder.

    Args:
        encoder: The U-Net's own, or another pyramid.
        num_outputs: Channels of the output.
        tanh: True for the generator (two chroma channels), False for logits (segmentation).
        norm: Of the decoder.
        bias_before_norm: Of the decoder.
        dropout: Of the decoder's first blocks.
        skips: False: the decoder sees the encoder's last level alone, zeros in place of the others;
            an output that is the input could otherwise pass through the largest level unlearnt.
    """

    def __init__(
        self,
        encoder: FeaturePyramid,
        *,
        num_outputs: int = 2,
        tanh: bool = True,
        norm: NormName = "batch",
        bias_before_norm: bool = False,
        dropout: float = 0.5,
        skips: bool = True,
    ) -> None:
        super().__init__()
        # A setting, not another class: weights of generator and segmenter have the same names.
        self.tanh = tanh
        self.skips = skips
        self.encoder = encoder
        self.decoder = Decoder(
            encoder.channels,
            num_outputs=num_outputs,
            norm=norm,
            bias_before_norm=bias_before_norm,
            dropout=dropout,
        )

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Map L' (B, 1, S, S) to B x num_outputs x S x S; in [-1, 1] when `tanh`."""
        features = self.encoder(luminance_B1HW)
        if not self.skips:
            features = [*map(torch.zeros_like, features[:-1]), features[-1]]
        out: Tensor = self.decoder(features)
        if self.encoder.strides[0] != 2:
            # The encoder's first level has stride 4. Nearest, as the gradient of a bilinear resize
            # adds up in any order on a GPU.
            out = F.interpolate(out, scale_factor=self.encoder.strides[0] // 2, mode="nearest")
        out = fitted(out, luminance_B1HW)
        return torch.tanh(out) if self.tanh else out


class ClassUNet(nn.Module):
    """Encoder and decoder for color as classes: scores at the side of the largest level, S/2.

    Chroma at half the side is what most photos are stored with; the paper predicts at a quarter
    (colorgan/models/color_classes.py). The scores are a 1x1 convolution of the decoder's last
    block.

    Args:
        encoder: The U-Net's own, or another pyramid.
        ab_scale: Divisor of a and b.
        norm: Of the decoder.
        bias_before_norm: Of the decoder.
        dropout: Of the decoder's first blocks.
    """

    def __init__(
        self,
        encoder: FeaturePyramid,
        *,
        ab_scale: float,
        norm: NormName = "batch",
        bias_before_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(
            encoder.channels,
            num_outputs=NUM_CLASSES,
            norm=norm,
            bias_before_norm=bias_before_norm,
            dropout=dropout,
            doubles=False,
        )
        self.classes = ColorClasses(ab_scale)

    def forward(self, luminance_B1HW: Tensor, *, scores: bool = False) -> Tensor:
        """Map L' (B, 1, S, S) to normalised chroma (B, 2, S, S), the annealed mean.

        With `scores` to the logits of the classes, (B, 313, S/2, S/2), which training needs.
        """
        out: Tensor = self.decoder(self.encoder(luminance_B1HW))
        if scores:
            return out

        height, width = luminance_B1HW.shape[-2:]
        chroma_B2HW: Tensor = self.classes(out, (height, width))
        return chroma_B2HW


class Classifier(nn.Module):
    """Encoder, its last level averaged (1x1 in the U-Net), and VGG's head.

    The head has two hidden layers with ReLU and dropout, and one logit per class.
    """

    def __init__(
        self,
        encoder: FeaturePyramid,
        *,
        num_classes: int,
        hidden_width: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(encoder.channels[-1], hidden_width),
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
