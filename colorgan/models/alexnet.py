"""AlexNet's convolutions with batch norm: the network that papers on coloring compare features of.

The sizes are torchvision's (Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", arXiv:1404.5997), with one input channel and a batch norm behind each convolution, as
coloring networks are trained (Zhang et al., "Colorful Image Colorization", ECCV 2016; Larsson et
al., "Colorization as a Proxy Task for Visual Understanding", CVPR 2017). Without its norms, which
can be merged into the convolutions, it is torchvision's network.
"""

from __future__ import annotations

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions and two poolings: levels of stride 4, 8 and 16.

    Attributes:
        channels: Of the levels.
        strides: Of the levels; sides are 55, 27 and 13 at 224 pixels, as in the paper.
        features: Layers in order, as torchvision's `vgg` with batch norm counts them.
    """

    channels = (64, 192, 256)
    strides = (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 64, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(64, 192, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(192, 384, 3, padding=1),
            *_convolution(384, 256, 3, padding=1),
            *_convolution(256, 256, 3, padding=1),
        )

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        """Return the features ahead of each pooling, and the last convolution's."""
        levels: list[Tensor] = []
        x = luminance_B1HW
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                levels.append(x)
            x = layer(x)
        return [*levels, x]


def _convolution(
    inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int
) -> tuple[nn.Module, ...]:
    # Without a bias, which the norm would subtract again.
    convolution = nn.Conv2d(inputs, outputs, side, stride, padding, bias=False)
    # He's variance: torch's default lets the signal shrink from layer to layer.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    # Not in place: a level is a skip of the decoder, too.
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
