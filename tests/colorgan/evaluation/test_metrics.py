"""Scores against skimage, scikit-learn, torchmetrics and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_recall_curve
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.segmentation import dice_score

from colorgan.errors import TrainingError
from colorgan.evaluation.metrics import (
    average_precision,
    chroma_l1_B,
    colorfulness_B,
    confusion_matrix,
    dice_per_class,
    first_positive_accuracy,
    iou_per_class,
    mean_average_precision,
    mean_dice,
    mean_iou,
    pixel_accuracy,
    psnr_B,
    ssim_B,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(
        shape,
        generator=torch.Generator().manual_seed(seed),
    )


def two_pictures() -> tuple[Tensor, Tensor]:
    """Smooth ramps with a flat half (where float32 variances cancel), and the same with noise.

    3x3x40x33.
    """
    base = torch.linspace(0, 1, 33).expand(3, 3, 40, 33).clone()
    # A value without an exact binary form: its variance in float32 is not zero.
    base[:, :, 20:] = 0.73
    return (base + 0.1 * (noise(3, 3, 40, 33) - 0.5)).clamp(0, 1), base


def test_psnr_is_skimage() -> None:
    ours, theirs = two_pictures()
    expected = [
        peak_signal_noise_ratio(b, a, data_range=1.0)
        for a, b in zip(ours.double().numpy(), theirs.double().numpy(), strict=True)
    ]

    assert psnr_B(ours, theirs).tolist() == pytest.approx(expected, rel=1e-6)
    # Equal images: infinite, not an error.
    assert psnr_B(ours, ours).tolist() == [math.inf] * 3
    assert psnr_B(
        torch.zeros(1, 3, 2, 2),
        torch.full((1, 3, 2, 2), 0.1),
    ).item() == pytest.approx(20.0, abs=1e-5)


@pytest.mark.parametrize(
    "side",
    [
        (40, 33),
        (11, 11),
        (11, 33),
    ],
)
def test_ssim_is_skimage(side: tuple[int, int]) -> None:
    ours, theirs = (picture[:, :, : side[0], : side[1]] for picture in two_pictures())
    expected = [
        structural_similarity(
            a,
            b,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for a, b in zip(ours.double().numpy(), theirs.double().numpy(), strict=True)
    ]

    assert ssim_B(ours, theirs).tolist() == pytest.approx(expected, abs=1e-7)
    # Scores are computed in float32 whatever the training's precision is.
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim_B(ours, theirs).tolist() == pytest.approx(expected, abs=1e-7)


def test_ssim_is_torchmetrics_map_without_its_mirrored_borders() -> None:
    ours, theirs = two_pictures()
    _, whole = structural_similarity_index_measure(
        ours.double(), theirs.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    assert torch.allclose(
        ssim_B(ours, theirs), whole[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)), atol=1e-6
    )


def test_ssim_of_one_picture_and_of_equal_pictures() -> None:
    ours, theirs = two_pictures()
    assert ssim_B(ours[:1], theirs[:1]).shape == (1,)
    assert ssim_B(ours, ours).tolist() == pytest.approx([1.0] * 3)


def test_ssim_says_when_a_picture_is_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"at least 11x11 pixels .* got 10x64"):
        ssim_B(
            noise(1, 3, 10, 64),
            noise(1, 3, 10, 64),
        )


def test_picture_scores_refuse_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="not B3HW twice"):
        psnr_B(
            noise(1, 3, 16, 16),
            noise(1, 3, 16, 15),
        )

    with pytest.raises(ValueError, match="unequal shapes"):
        chroma_l1_B(
            noise(1, 2, 4, 4),
            noise(2, 2, 4, 4),
        )


def test_colorfulness_by_hand_and_by_numpy() -> None:
    assert colorfulness_B(noise(1, 1, 8, 8).expand(1, 3, 8, 8)).item() == pytest.approx(
        0.0, abs=1e-5
    )

    red = (
        torch.tensor([1.0, 0.0, 0.0])
        .view(1, 3, 1, 1)
        .expand(
            1,
            3,
            4,
            4,
        )
    )

    assert colorfulness_B(red).item() == pytest.approx(
        0.3 * 255 * math.hypot(1, 0.5)
    )  # no spread, only means

    r, g, b = (noise(3, 9, 9) * 255).double().numpy()
    rg = r - g
    yb = (r + g) / 2 - b
    expected = math.hypot(np.std(rg), np.std(yb)) + 0.3 * math.hypot(np.mean(rg), np.mean(yb))

    assert colorfulness_B(noise(3, 9, 9)[None]).item() == pytest.approx(expected, rel=1e-6)


def test_chroma_l1_by_hand() -> None:
    ab = torch.zeros(2, 2, 1, 2)
    target = torch.tensor(
        [
            [
                [[4.0, -2.0]],
                [[0.0, 0.0]],
            ],
            [
                [[1.0, 1.0]],
                [[1.0, -1.0]],
            ],
        ]
    )

    assert chroma_l1_B(ab, target).tolist() == [1.5, 1.0]


def envelope_area_of_sklearn(scores: Tensor, positives: Tensor) -> float:
    precision, recall, _ = precision_recall_curve(
        positives.numpy(),
        scores.numpy(),
    )
    precision, recall = precision[::-1], recall[::-1]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [4, 1000])
def test_average_precision_is_the_envelope_of_sklearns_curve(seed: int, levels: int) -> None:
    scores = (noise(50, seed=seed) * levels).floor()  # with 4 levels nearly all are ties
    positives = (noise(50, seed=seed + 100) + 0.2 * scores / levels) > 0.8
    positives[0] = True
    expected = envelope_area_of_sklearn(scores, positives)

    assert average_precision(scores, positives) == pytest.approx(expected, rel=1e-9)
    shuffled = torch.randperm(
        50,
        generator=torch.Generator().manual_seed(seed),
    )

    assert average_precision(
        scores[shuffled],
        positives[shuffled],
    ) == pytest.approx(expected, rel=1e-9)


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    positives = torch.tensor([1, 0, 1, 0, 1])

    # precision 1, 2/3, 3/5 at recall 1/3, 2/3, 1
    assert average_precision(scores, positives) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    eleven = (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11  # recalls 0-0.3, 0.4-0.6, 0.7-1

    assert average_precision(
        scores,
        positives,
        interpolation="11-point",
    ) == pytest.approx(eleven)
    # Without the second and the fourth every positive stands on top.
    assert average_precision(
        scores, positives, ignore_N=torch.tensor([0, 1, 0, 1, 0])
    ) == pytest.approx(1.0)


def test_eleven_points_hit_each_tenth_exactly() -> None:
    scores = torch.arange(20, 0, -1.0)
    positives = torch.tensor([1, 0] * 10)
    precisions = [(k / (2 * k - 1)) for k in range(1, 11)]
    assert average_precision(scores, positives, interpolation="11-point") == pytest.approx(
        (precisions[0] + sum(precisions)) / 11
    )


def test_average_precision_without_positives_or_with_nan() -> None:
    assert math.isnan(average_precision(noise(4), torch.zeros(4)))
    assert math.isnan(average_precision(noise(0), torch.zeros(0)))
    with pytest.raises(TrainingError, match="1 of 2 scores are NaN"):
        average_precision(
            torch.tensor([1.0, math.nan]),
            torch.tensor([1, 0]),
        )


def test_mean_average_precision_counts_what_it_scored() -> None:
    scores = noise(30, 4)
    positives = (noise(30, 4, seed=1) > 0.7).float()
    positives[:, 2] = 0
    ignore = noise(30, 4, seed=2) > 0.9
    result = mean_average_precision(scores, positives, ignore)
    kept = [average_precision(scores[:, c], positives[:, c], ignore[:, c]) for c in (0, 1, 3)]

    assert result.value == pytest.approx(sum(kept) / 3)
    assert (
        result.num_classes,
        result.num_images,
    ) == (3, 30)
    assert math.isnan(result.per_class[2])
    assert result.per_class[3] == kept[2]
    assert math.isnan(
        mean_average_precision(
            scores,
            torch.zeros(30, 4),
        ).value
    )
    with pytest.raises(ValueError, match="do not match"):
        mean_average_precision(scores, positives[:, :3])


def test_first_positive_accuracy_is_keras_categorical_accuracy() -> None:
    scores = torch.tensor(
        [
            [0.1, 0.9, 0.2],
            [0.1, 0.2, 0.9],
            [0.9, 0.1, 0.1],
            [0.1, 0.9, 0.1],
        ]
    )
    positives = torch.tensor(
        [
            [0, 1, 1],
            [0, 1, 1],
            [0, 0, 0],
            [0, 0, 0],
        ]
    )

    # right; best is a positive but not the first; no positives and class 0 best: right; no
    # positives: wrong
    assert first_positive_accuracy(scores, positives) == 0.5

    scores = noise(99, 20)
    positives = (noise(99, 20, seed=1) > 0.9).float()
    expected = accuracy_score(
        positives.numpy().argmax(1),
        scores.numpy().argmax(1),
    )

    assert first_positive_accuracy(scores, positives) == pytest.approx(expected)


def masks() -> tuple[Tensor, Tensor]:
    target = (noise(2, 16, 16) * 5).long()  # classes 0-4 of 6
    predicted = torch.where(
        noise(2, 16, 16, seed=1) < 0.6, target, (noise(2, 16, 16, seed=2) * 5).long()
    )
    target[noise(2, 16, 16, seed=3) < 0.1] = 255
    return predicted, target


def test_segmentation_scores_are_sklearns_and_torchmetrics() -> None:
    predicted, target = masks()
    matrix = confusion_matrix(predicted, target, 6)
    keep = target != 255
    a = target[keep].numpy()
    b = predicted[keep].numpy()

    assert np.array_equal(
        matrix.numpy(),
        sklearn_confusion_matrix(a, b, labels=range(6)),
    )
    assert iou_per_class(matrix)[:5].tolist() == pytest.approx(
        jaccard_score(a, b, average=None).tolist()
    )
    assert math.isnan(iou_per_class(matrix)[5])
    assert mean_iou(matrix) == pytest.approx(jaccard_score(a, b, average="macro"))
    assert pixel_accuracy(matrix) == pytest.approx(accuracy_score(a, b))

    expected = multiclass_jaccard_index(predicted, target, 5, average="macro", ignore_index=255)
    assert mean_iou(matrix) == pytest.approx(float(expected), rel=1e-6)


def test_dice_is_sklearns_f1_and_torchmetrics_dice() -> None:
    predicted, target = masks()
    matrix = confusion_matrix(predicted, target, 6)
    keep = target != 255
    a = target[keep].numpy()
    b = predicted[keep].numpy()

    assert dice_per_class(matrix)[:5].tolist() == pytest.approx(
        f1_score(a, b, average=None).tolist()
    )
    assert math.isnan(dice_per_class(matrix)[5])
    assert mean_dice(matrix) == pytest.approx(
        f1_score(
            a,
            b,
            average="macro",
            labels=[1, 2, 3, 4],
        )
    )

    iou = iou_per_class(matrix)[:5]
    assert torch.allclose(
        dice_per_class(matrix)[:5],
        2 * iou / (1 + iou),
    )

    whole = confusion_matrix(
        predicted[:1],
        target[:1].masked_fill(target[:1] == 255, 0),
        5,
    )
    theirs = dice_score(
        predicted[:1], target[:1].masked_fill(target[:1] == 255, 0), 5, include_background=False,
        average="macro", aggregation_level="global", input_format="index",
    )  # fmt: skip

    assert mean_dice(whole) == pytest.approx(float(theirs), rel=1e-6)


def test_dice_of_background_alone_is_nothing_found() -> None:
    target = torch.tensor([[0, 1], [1, 0]])

    assert (
        mean_dice(
            confusion_matrix(
                torch.zeros_like(target),
                target,
                2,
            )
        )
        == 0.0
    )
    assert math.isnan(
        mean_dice(
            confusion_matrix(
                torch.zeros_like(target),
                torch.zeros_like(target),
                2,
            )
        )
    )


def test_void_as_background_is_the_papers_way() -> None:
    predicted, target = masks()
    matrix = confusion_matrix(predicted, target, 6, void_as_background=True)

    assert torch.equal(
        matrix,
        confusion_matrix(
            predicted,
            target.masked_fill(target == 255, 0),
            6,
        ),
    )
    assert matrix.sum() == target.numel()


def test_confusion_matrices_add_up() -> None:
    predicted, target = masks()
    halves = confusion_matrix(predicted[0], target[0], 6) + confusion_matrix(
        predicted[1], target[1], 6
    )

    assert torch.equal(
        halves,
        confusion_matrix(predicted, target, 6),
    )


def test_confusion_matrix_refuses_what_it_cannot_count() -> None:
    predicted, target = masks()

    with pytest.raises(
        ValueError, match="target class indices run from 0 to 4, there are 4 classes"
    ):
        confusion_matrix(
            predicted.clamp(max=3),
            target,
            4,
        )
    with pytest.raises(ValueError, match="does not match"):
        confusion_matrix(predicted, target[0], 6)
    assert math.isnan(
        mean_iou(
            confusion_matrix(
                predicted,
                torch.full_like(target, 255),
                6,
            )
        )
    )
