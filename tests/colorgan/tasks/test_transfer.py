"""What fine-tuning's settings do to weights, gradients and images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import small_classifier, small_config
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.config.recipe import FinetuneRecipe, StageRecipe
from colorgan.data import ClassCounts
from colorgan.distributed.phase import RATE_SHARE
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.errors import UsageError
from colorgan.evaluation.losses import LossSettings, classification_loss, segmentation_loss
from colorgan.models.model_folder import build_model
from colorgan.models.modes import initialise
from colorgan.tasks.augmentation import jittered
from colorgan.tasks.class_weights import MAX_WEIGHT, pixel_weights, positive_weights
from colorgan.tasks.parameter_groups import freeze, parameter_groups
from colorgan.tasks.transfer import Stage, TransferTask, build_stage

LEVELS = 5  # of the encoder at 32 pixels


def network() -> nn.Module:
    model = small_classifier(num_classes=3, hidden_width=8)
    initialise(model, 0)
    return model


def finetuning(
    stage: dict[str, Any] | None = None, **recipe: Any
) -> tuple[nn.Module, TransferTask]:
    """Return a model and the task of its one stage."""
    settings = {"run": "run", "init": "somewhere", **recipe}
    model = network()
    chosen = StageRecipe.model_validate(
        {
            "epochs": 1,
            "learning_rate": 0.1,
            **(stage or {}),
        }
    )
    task = build_stage(
        model,
        FinetuneRecipe.model_validate(settings),
        Stage(chosen, 0, 100),
    )

    return model, task


def step(model: nn.Module, task: TransferTask) -> dict[str, Tensor]:
    """Return how far each weight moved in one step whose gradients are all 1."""
    strategy = open_strategy(
        Ranks.single(),
        task.phases,
    )
    before = {name: each.detach().clone() for name, each in model.named_parameters()}

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)

    strategy.step(
        task.phases[0],
        images_seen=0,
    )
    return {name: each.detach() - before[name] for name, each in model.named_parameters()}


def test_without_settings_it_is_adam_over_one_group() -> None:
    _, task = finetuning()
    optimizer = task.phases[0].optimizer
    assert type(optimizer) is torch.optim.Adam
    assert len(optimizer.param_groups) == 1


def test_weight_decay_is_decoupled_and_spares_biases_and_norms() -> None:
    """Adam's first step is the rate, whatever the gradient; decay adds rate x decay x weight."""
    model, task = finetuning(weight_decay=0.5)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for name, moved in step(model, task).items():
        decay = 0.5 if before[name].ndim > 1 else 0.0
        expected = -0.1 - 0.1 * decay * before[name]
        assert torch.allclose(moved, expected, atol=1e-5), name


def test_each_level_learns_at_a_share_of_the_next_ones_rate() -> None:
    model, task = finetuning(layer_decay=0.5)

    for name, moved in step(model, task).items():
        parts = name.split(".")
        distance = LEVELS - int(parts[2]) if parts[0] == "encoder" else 0
        expected = torch.full_like(
            moved,
            -0.1 * 0.5**distance,
        )
        assert torch.allclose(moved, expected, rtol=1e-4), name


def test_levels_from_the_input_on_are_frozen_with_their_statistics() -> None:
    model, task = finetuning({"frozen_levels": 2})
    moved = {name for name, change in step(model, task).items() if bool(change.any())}
    names = {name for name, _ in model.named_parameters()}
    frozen = {name for name in names if name.startswith(("encoder.blocks.0.", "encoder.blocks.1."))}
    assert frozen and moved == names - frozen

    norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    modes = {name: part.training for name, part in norms.items()}
    assert modes == {name: not name.startswith("encoder.blocks.1.") for name in norms}


def test_frozen_features_leave_the_new_layers_to_learn() -> None:
    model, task = finetuning({"features": "frozen"})
    moved = {name for name, change in step(model, task).items() if bool(change.any())}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("head.")}


def test_more_levels_than_there_are_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=f"frozen_levels is 5, but the encoder has {LEVELS}"):
        finetuning({"frozen_levels": 5})
    model = SimpleNamespace(encoder=nn.Identity())
    with pytest.raises(UsageError, match="need the U-Net's own encoder"):
        freeze(model, (), features=False, levels=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="need the U-Net's own encoder"):
        parameter_groups(model, weight_decay=0.0, layer_decay=0.5)  # type: ignore[arg-type]


def test_levels_of_a_network_from_scratch_are_not_frozen() -> None:
    with pytest.raises(ValidationError, match="give --init GENERATOR"):
        FinetuneRecipe.model_validate(
            {"stages": [{"epochs": 1, "learning_rate": 1, "frozen_levels": 1}]}
        )


def test_groups_hold_every_weight_that_learns_once() -> None:
    model = network()
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.9)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {group[RATE_SHARE] for group in groups} == {0.9**i for i in range(LEVELS + 1)}


def test_balanced_classes_weigh_positives_and_negatives_alike() -> None:
    counts = ClassCounts(
        samples=100,
        counts_C=np.array([50, 10, 0, 100, 1000 // 1000]),
    )
    weights_C = positive_weights(counts)
    assert weights_C.tolist() == pytest.approx([1.0, 9.0, 1.0, 1 / MAX_WEIGHT, 99.0])

    targets_BC = torch.zeros(100, 5)
    for index, count in enumerate(counts.counts_C):
        targets_BC[:count, index] = 1.0
    batch: Any = SimpleNamespace(classes_BC=targets_BC)
    logits_BC = torch.zeros(100, 5, requires_grad=True)
    classification_loss(
        logits_BC,
        batch,
        LossSettings(class_weights_C=weights_C),
    ).backward()
    assert logits_BC.grad is not None
    # Undecided logits are pulled up by the positives as much as down by the negatives.
    assert logits_BC.grad.sum(0)[[0, 1, 4]].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_class_that_a_large_set_showed_to_no_sample_counts_as_rare() -> None:
    counts_C = np.array([50, 0])
    assert positive_weights(ClassCounts(100, counts_C, is_whole=False))[1] == MAX_WEIGHT
    assert pixel_weights(ClassCounts(100, counts_C, is_whole=False))[1] == MAX_WEIGHT
    assert pixel_weights(ClassCounts(100, counts_C))[1] == 1.0


def test_balanced_pixels_weigh_each_class_alike_and_void_nothing() -> None:
    mask_BHW = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask_BHW[0, 0, :4] = 1
    mask_BHW[1, :2] = 2
    mask_BHW[1, 7] = 255
    pixels = torch.bincount(
        mask_BHW[mask_BHW != 255],
        minlength=4,
    ).numpy()
    weights_C = pixel_weights(ClassCounts(2, pixels))
    share_C = pixels / pixels.sum()
    assert (weights_C[:3] * torch.from_numpy(share_C[:3])).tolist() == pytest.approx([1 / 3] * 3)
    assert weights_C[3] == 1.0  # never seen

    logits_BCHW = torch.randn(
        2,
        4,
        8,
        8,
        generator=torch.Generator().manual_seed(0),
    )
    batch: Any = SimpleNamespace(mask_BHW=mask_BHW)
    loss = segmentation_loss(
        logits_BCHW,
        batch,
        LossSettings(class_weights_C=weights_C),
    )
    by_pixel = F.cross_entropy(logits_BCHW, mask_BHW, ignore_index=255, reduction="none")
    weight_BHW = weights_C[mask_BHW.clamp(max=3)]
    assert float(loss) == pytest.approx(
        float((by_pixel * weight_BHW).mean()),
        rel=1e-5,
    )


def test_jitter_moves_contrast_and_brightness_within_bounds() -> None:
    luminance_B1HW = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    positions_B = torch.arange(64)
    out_B1HW = jittered(luminance_B1HW, 0.4, seed=3, positions_B=positions_B)
    contrast_B = (out_B1HW.std(dim=(1, 2, 3)) / luminance_B1HW.std(dim=(1, 2, 3))).tolist()
    moved_B = (out_B1HW.mean(dim=(1, 2, 3)) - luminance_B1HW.mean(dim=(1, 2, 3))).tolist()
    assert min(contrast_B) >= 0.599
    assert max(contrast_B) <= 1.401
    assert min(moved_B) >= -0.401
    assert max(moved_B) <= 0.401
    assert np.std(contrast_B) > 0.15
    assert np.std(moved_B) > 0.15
    assert abs(float(np.corrcoef(contrast_B, moved_B)[0, 1])) < 0.35

    assert jittered(luminance_B1HW, 0.0, seed=3, positions_B=positions_B) is luminance_B1HW
    wide_B1HW = torch.full((4, 1, 2, 2), 0.99)
    assert (
        float(
            jittered(
                wide_B1HW,
                0.9,
                seed=0,
                positions_B=torch.arange(4),
            ).max()
        )
        <= 1.0
    )


def test_jitter_belongs_to_the_position_and_the_seed() -> None:
    luminance_B1HW = torch.rand(
        6,
        1,
        4,
        4,
        generator=torch.Generator().manual_seed(0),
    )
    positions_B = torch.arange(10, 16)
    whole = jittered(luminance_B1HW, 0.3, seed=1, positions_B=positions_B)
    part = jittered(
        luminance_B1HW[4:],
        0.3,
        seed=1,
        positions_B=positions_B[4:],
    )

    assert torch.equal(whole[4:], part)
    assert not torch.equal(whole, jittered(luminance_B1HW, 0.3, seed=2, positions_B=positions_B))


def test_the_network_sees_what_was_jittered() -> None:
    """And the color, which it never sees, stays out of it."""
    recipe = FinetuneRecipe.model_validate({"run": "run", "luminance_jitter": 0.5})
    model = build_model(small_config("classifier", num_outputs=2))
    stage = Stage(
        StageRecipe(epochs=1, learning_rate=0.1),
        0,
        8,
    )
    task = build_stage(model, recipe, stage)
    lab_B3HW = torch.rand(
        2,
        3,
        32,
        32,
        generator=torch.Generator().manual_seed(0),
    )
    positions_B = torch.arange(2)
    batch: Any = SimpleNamespace(
        lab_B3HW=lab_B3HW, positions_B=positions_B, classes_BC=torch.zeros(2, 2)
    )
    seen: list[Tensor] = []

    def spy(luminance_B1HW: Tensor) -> Tensor:
        seen.append(luminance_B1HW)
        return torch.zeros(2, 2)

    task.loss(
        task.phases[0],
        batch,
        {"model": spy},
    )
    expected = jittered(
        lab_B3HW[:, :1],
        0.5,
        seed=0,
        positions_B=positions_B,
    )
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], lab_B3HW[:, :1])
