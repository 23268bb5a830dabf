"""Layers of the networks: dropout by key, batch norm, blocks that halve or double the side."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.errors import ArchitectureError

NormName = Literal["batch", "instance"]


class SelfDrawn(nn.Module):
    """A network that draws its weights by its own rule, where others are drawn by `initialise`.

    It is made by its name alone: `type(network)(network.name)` is another one with fresh weights.
    """

    name: str

    def draw(self, seed: int) -> None:
        """Draw every weight anew, as a function of `seed` alone; statistics begin anew, too."""
        # Its own rule draws from torch's common generator: that is seeded, and then given back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = type(self)(self.name)
        self.load_state_dict(fresh.state_dict())


class KeyedDropout(nn.Module):
    """Dropout whose mask is a pure function of one int32 key per sample: no hidden random state.

    The same sample of the same step is masked alike on the CPU and on a GPU, on any number of
    ranks, in any micro-batch and after any resume. The hash is murmur3's finaliser in wrapping
    int32 arithmetic.
    """

    def __init__(self, probability: float, salt: int) -> None:
        super().__init__()
        self.probability = probability
        self.salt = salt
        self.keys_B: Tensor | None = None
        self.at_inference = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share `probability` of its elements zeroed and the rest scaled up.

        Same shape.
        """
        # At 0 without keys: networks without dropout need no `set_dropout_keys`.
        if self.probability == 0.0 or not (self.training or self.at_inference):
            return x

        if self.keys_B is None or self.keys_B.shape[0] != x.shape[0]:
            raise ArchitectureError(
                "dropout needs one key per sample: call set_dropout_keys(module, keys_B) first"
            )

        # A hash of key and place, not a draw: CPU and GPU generators give different numbers.
        index = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
        sample_hash_B = _mix(self.keys_B.to(x.device) + self.salt)
        hashed = _mix(sample_hash_B[:, None] ^ index[None, :])
        # Compared as signed int32, which cover all thresholds; torch has few uint32 kernels.
        keep = hashed >= int(self.probability * 2**32) - 2**31
        return x * keep.view_as(x).to(x.dtype) / (1.0 - self.probability)


def _mix(h: Tensor) -> Tensor:
    """Murmur3's finaliser; int32 wraps, and a shift to the right is made unsigned by its mask."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85ebca6b
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xc2b2ae35
    return h ^ ((h >> 16) & 0xFFFF)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that can use the batch's own statistics at inference; the running ones stay."""

    batch_statistics_at_inference = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (B, C, H, W) over B, H and W; same shape."""
        if self.training or not self.batch_statistics_at_inference:
            return super().forward(input)
        # No running statistics passed: they must not move while a network is evaluated.
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


def _norm(name: NormName, channels: int) -> nn.Module:
    return BatchNorm(channels) if name == "batch" else nn.InstanceNorm2d(channels, affine=True)


class Down(nn.Module):
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
        # A norm subtracts a bias again: there is none before one unless the recipe asks for it.
        self.conv = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=bias or norm is None)
        self.norm = _norm(norm, outputs) if norm else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map B x inputs x H x W to B x outputs x H/stride x W/stride, rounded up."""
        if self.conv.stride[0] == 2:
            # Sizes that are no multiple of the encoder's stride need it.
            height, width = x.shape[-2:]
            x = _cut_or_extended(x, height + height % 2, width + width % 2)
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class Up(nn.Module):
    """Transposed convolution 4x4, stride 2, norm, dropout, skip concatenated, ReLU.

    Doubles the side, and then fits it to the skip's where that is odd.
    """

    def __init__(
        self, inputs: int, outputs: int, *, norm: NormName, bias: bool, dropout: float, salt: int
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)
        self.norm = _norm(norm, outputs)
        self.dropout = KeyedDropout(dropout, salt)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map B x inputs x H x W and a skip to B x (outputs + the skip's channels) x 2H x 2W.

        H and W doubled may differ from the skip's by a few; the skip's are given.
        """
        x = fitted(self.dropout(self.norm(self.conv(x))), skip)
        # ReLU behind the concatenation, as pix2pix's decoder has it before each deconvolution.
        return F.relu(torch.cat([x, skip], dim=1))


def fitted(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` (B, C, H, W) with the height and width of `like`.

    What is too much at the bottom and right is cut off, what lacks there repeats the last row or
    column. Nothing is stretched: pixels keep their places.
    """
    height, width = like.shape[-2:]
    return _cut_or_extended(x, height, width)


def _cut_or_extended(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x

    x = x[..., :height, :width]
    # By concatenation: the gradient of torch's replicating pad adds up in any order on a GPU.
    rows, columns = height - x.shape[-2], width - x.shape[-1]
    if rows:
        x = torch.cat([x, x[..., -1:, :].expand(-1, -1, rows, -1)], dim=-2)
    if columns:
        x = torch.cat([x, x[..., -1:].expand(-1, -1, -1, columns)], dim=-1)
    return x
