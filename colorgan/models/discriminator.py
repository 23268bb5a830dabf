"""The discriminator: a 70x70 PatchGAN (Isola et al. 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from colorgan.models.layers import Down, NormName

PatchPadding = Literal["same", "pix2pix"]


class Discriminator(nn.Module):
    """70x70 PatchGAN over L' and ab' together: one logit per patch.

    The reference code has four strided blocks and "same" padding (a 16x16 map at 256); its text and
    pix2pix have three and padding 1 (30x30). Both are here: `num_strided_blocks` and `padding`.
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
        # L, a and b: the discriminator is conditional, it sees the grey photo too.
        inputs = 3
        for level in range(num_strided_blocks + 1):
            # Widths stop at 8 times the first, as in pix2pix: wider ones cost memory for little.
            outputs = width * min(2**level, 8)
            strided = level < num_strided_blocks
            if not strided and padding == "same":
                blocks.append(_pad_to_same())

            blocks.append(
                Down(
                    inputs,
                    outputs,
                    # No norm in the first block (Isola et al., appendix 6.1.2).
                    norm=norm if level else None,
                    bias=bias_before_norm,
                    activation=nn.LeakyReLU(0.2),
                    stride=2 if strided else 1,
                )
            )
            inputs = outputs

        self.blocks = nn.Sequential(*blocks)
        self.pad = _pad_to_same() if padding == "same" else nn.Identity()
        # Logits without a sigmoid: the losses take them as they are.
        self.output = nn.Conv2d(inputs, 1, 4, 1, 1)

    def forward(self, luminance_B1HW: Tensor, chroma_B2HW: Tensor) -> Tensor:
        """Return one logit per patch, B x 1 x h x w; positive means real."""
        lab_B3HW = torch.cat([luminance_B1HW, chroma_B2HW], dim=1)
        out: Tensor = self.output(self.pad(self.blocks(lab_B3HW)))
        return out


def _pad_to_same() -> nn.ZeroPad2d:
    """With a 4x4 convolution of stride 1 and padding 1: Keras' "same" (one before, two after)."""
    return nn.ZeroPad2d((0, 1, 0, 1))
