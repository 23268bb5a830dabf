"""Object detection: an anchor-free head on the U-Net's features, and its output as boxes.

The head is FCOS's (Tian et al., "FCOS: A Simple and Strong Anchor-Free Object Detector", TPAMI
2022, arXiv:2006.09214) at one level of stride 4, where the paper has five of stride 8 to 128: the
U-Net's features see the whole image at every level, and at 64 pixels stride 8 leaves 8 x 8 points.
Each point predicts its class, its closeness to an object's middle, and the distances to the
object's four sides. Two convolutions per branch; the paper has four.

Boxes are x0, y0, x1, y1 as shares of the square input. B images, C classes, P = h * w points, N
boxes; the raw output holds C class logits, one of centre-ness and four logarithms of distances: B x
(C + 5) x h x w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colorgan.models.layers import NormName
from colorgan.models.unet import FeaturePyramid, decoder_blocks, run_decoder

STRIDE = 4
# Every class starts at 1 % (Lin et al. 2017, section 4.1).
PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)
# Of a point to each side before training: boxes of 0.4 of the image's sides.
START_DISTANCE = 0.2
# e^2 * 0.2 = 1.5: from one end of the image past the other.
MAX_LOG_DISTANCE = 2.0
# FCOS scores with 0.05, overlap 0.6 and 100 detections per image, out of 1,000 candidates per
# level. Ours has one level of 256 points at 64 pixels; comparing 1,000 candidates with each other
# costs 75 ms per image on a core, 400 cost 17.
MIN_SCORE, MAX_CANDIDATES, MAX_OVERLAP, MAX_DETECTIONS = 0.05, 400, 0.6, 100


class Detector(nn.Module):
    """Encoder, the decoder's blocks up to stride 4, and the head.

    Nothing of the decoder beyond that.
    """

    def __init__(
        self,
        encoder: FeaturePyramid,
        *,
        head_width: int,
        num_classes: int,
        norm: NormName = "batch",
        bias_before_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        channels, level = encoder.channels, encoder.strides.index(STRIDE)
        blocks = decoder_blocks(
            channels, norm=norm, bias_before_norm=bias_before_norm, dropout=dropout
        )
        num_blocks = len(channels) - 1 - level

        # The weights have the generator's names: decoder.blocks.0 ...
        self.decoder = nn.Module()
        self.decoder.blocks = blocks[:num_blocks]
        self.head = Head(2 * channels[level], head_width, num_classes)

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Map L' (B, 1, S, S) to the raw output, B x (C + 5) x S/4 x S/4."""
        blocks: nn.ModuleList = self.decoder.get_submodule("blocks")  # type: ignore[assignment]
        out: Tensor = self.head(run_decoder(blocks, self.encoder(luminance_B1HW)))
        return out


class Head(nn.Module):
    """Two branches: class, and distances to the sides.

    Centre-ness belongs to the second (FCOS, section 3.4).
    """

    def __init__(self, inputs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.what, self.where = _branch(inputs, channels), _branch(inputs, channels)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return the raw output."""
        # Added here, not set as the bias: `initialise` sets every bias to zero.
        classes_BCHW = self.classes(self.what(features_BCHW)) + PRIOR_LOGIT
        return torch.cat([classes_BCHW, self.box(self.where(features_BCHW))], dim=1)


def _branch(inputs: int, channels: int) -> nn.Sequential:
    """Group norm as in FCOS; four channels per group, as the width may be small."""
    layers: list[nn.Module] = []
    for each in (inputs, channels):
        layers += [
            nn.Conv2d(each, channels, 3, padding=1),
            nn.GroupNorm(channels // 4, channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Predictions:
    """The raw output by its parts, float32."""

    classes_BPC: Tensor  # logits
    centre_BP: Tensor  # logits
    boxes_BP4: Tensor  # not clipped


def grid_points(height: int, width: int, device: torch.device) -> Tensor:
    """Return the points' x and y, P x 2, row by row: the middle of each of height x width cells."""
    x_W = (torch.arange(width, device=device) + 0.5) / width
    y_H = (torch.arange(height, device=device) + 0.5) / height
    x_HW = x_W.expand(height, width)
    y_HW = y_H[:, None].expand(height, width)
    return torch.stack([x_HW, y_HW], dim=-1).view(-1, 2)


def predictions(raw_BOHW: Tensor) -> Predictions:
    """Split the raw output into its parts."""
    raw_BPO = raw_BOHW.float().flatten(2).transpose(1, 2)
    points_P2 = grid_points(raw_BOHW.shape[2], raw_BOHW.shape[3], raw_BOHW.device)
    # An exponential keeps distances positive and its gradient relative to a box's size.
    distances_BP4 = START_DISTANCE * raw_BPO[..., -4:].clamp(max=MAX_LOG_DISTANCE).exp()

    low_BP2 = points_P2 - distances_BP4[..., :2]
    high_BP2 = points_P2 + distances_BP4[..., 2:]
    boxes_BP4 = torch.cat([low_BP2, high_BP2], dim=-1)
    return Predictions(raw_BPO[..., :-5], raw_BPO[..., -5], boxes_BP4)


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first."""

    boxes_N4: Tensor  # float32, within [0, 1]
    scores_N: Tensor  # float32, in (0, 1)
    classes_N: Tensor  # int64


def detect(raw_BOHW: Tensor) -> list[Detections]:
    """Return each image's detections.

    A score is the root of class probability times centre-ness (FCOS, eq. 4).
    """
    found = predictions(raw_BOHW)
    scores_BPC = (found.classes_BPC.sigmoid() * found.centre_BP.sigmoid()[..., None]).sqrt()
    return [
        _chosen(*each) for each in zip(found.boxes_BP4.clamp(0.0, 1.0), scores_BPC, strict=True)
    ]


def _chosen(boxes_P4: Tensor, scores_PC: Tensor) -> Detections:
    """Keep the best candidates that do not overlap a better one of their class."""
    # A stable sort: equal scores come in the same order on every machine.
    scores_N, places_N = scores_PC.flatten().sort(descending=True, stable=True)
    scores_N, places_N = scores_N[:MAX_CANDIDATES], places_N[:MAX_CANDIDATES]
    sure_N = scores_N >= MIN_SCORE
    scores_N, places_N = scores_N[sure_N], places_N[sure_N]

    num_classes = scores_PC.shape[1]
    boxes_N4, classes_N = boxes_P4[places_N // num_classes], places_N % num_classes

    # Boxes of other classes are moved out of reach, so that one suppression does for all classes.
    apart_N4 = boxes_N4 + 2.0 * classes_N[:, None]
    dropped_N = suppressed(apart_N4, MAX_OVERLAP)
    keep_N = (~dropped_N).nonzero().flatten()[:MAX_DETECTIONS]
    return Detections(boxes_N4[keep_N], scores_N[keep_N], classes_N[keep_N])


def suppressed(boxes_N4: Tensor, max_overlap: float) -> Tensor:
    """Return the boxes that greedy non-maximum suppression drops, bool N; boxes come best first.

    Without a loop over boxes: a box that a better, kept box overlaps is dropped, until nothing
    changes. After k rounds the first k are final, and a chain of boxes that save one another is
    rarely longer than a few (Zheng et al. 2021, Cluster-NMS, arXiv:2005.03572, proposition 1).
    """
    # The upper triangle: a box can only be dropped by a better one.
    overlaps_NN = (overlaps(boxes_N4, boxes_N4) > max_overlap).triu(diagonal=1)
    dropped_N = torch.zeros(len(boxes_N4), dtype=torch.bool, device=boxes_N4.device)
    while True:
        again_N = (overlaps_NN & ~dropped_N[:, None]).any(dim=0)
        if torch.equal(again_N, dropped_N):
            return dropped_N
        dropped_N = again_N


def overlaps(first_N4: Tensor, second_M4: Tensor) -> Tensor:
    """Return the intersection over union of each pair, N x M; 0 where both have no area."""
    low_NM2 = torch.maximum(first_N4[:, None, :2], second_M4[None, :, :2])
    high_NM2 = torch.minimum(first_N4[:, None, 2:], second_M4[None, :, 2:])
    common_NM = areas_of_sides((high_NM2 - low_NM2).clamp(min=0.0))
    union_NM = box_areas(first_N4)[:, None] + box_areas(second_M4)[None] - common_NM
    return common_NM / union_NM.clamp(min=torch.finfo(union_NM.dtype).tiny)


def box_areas(boxes_X4: Tensor) -> Tensor:
    """Return the areas of boxes in any arrangement."""
    return areas_of_sides(boxes_X4[..., 2:] - boxes_X4[..., :2])


def areas_of_sides(sides_X2: Tensor) -> Tensor:
    """Return widths times heights. The gradient of `prod` would ask the GPU whether one is 0."""
    return sides_X2[..., 0] * sides_X2[..., 1]
