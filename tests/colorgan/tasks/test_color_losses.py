"""Color losses: classes against numpy, one and two ranks, resume; and the controls of a study."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy import ToyLoader, on_ranks, toy_recipe, train_toy
from pydantic import ValidationError
from torch import Tensor

from colorgan.checkpoints.checkpoint import latest_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.models.color_classes import (
    NUM_CLASSES,
    SoftTargets,
    class_centers,
    rebalancing_weights,
)
from colorgan.models.generator import check_onnx, export_onnx
from colorgan.models.model_folder import build_model, load_model, save_model
from colorgan.models.modes import initialise
from colorgan.tasks.color_losses import class_cross_entropy, distance_loss, measure_prior
from colorgan.tasks.colorization import build_pretraining, generator_config
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()
EXACT: dict[str, Any] = {
    "network": {"image_size": 32, "width": 4, "norm": "instance"},
    "loss": {"color": "classes", "gan": "least_squares", "l1_weight": 2.0},
}


class CountedLoader(ToyLoader):
    """Toy batches with the number of a set's samples."""

    shards = types.SimpleNamespace(num_samples=20)


def test_cross_entropy_is_the_papers_equations():
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, NUM_CLASSES, 3, 3)) * 4
    ab = random.uniform(
        -60,
        60,
        size=(2, 3, 3, 2),
    )
    pixels = random.integers(0, 100, NUM_CLASSES)

    centers = class_centers().numpy().astype(float)
    weights = rebalancing_weights(torch.tensor(pixels), class_centers()).double().numpy()
    total = 0.0
    for image, row, column in np.ndindex(2, 3, 3):
        squared = ((centers - ab[image, row, column]) ** 2).sum(axis=1)
        target = np.where(
            squared <= np.sort(squared)[4],
            np.exp(-squared / 50.0),
            0.0,
        )
        target /= target.sum()
        share = np.exp(scores[image, :, row, column])
        share /= share.sum()
        total -= weights[target.argmax()] * (target * np.log(share)).sum()

    soft = SoftTargets(torch.device("cpu")).soft(torch.tensor(ab, dtype=torch.float32).view(-1, 2))
    loss = class_cross_entropy(
        torch.tensor(scores, dtype=torch.float32), *soft, torch.tensor(weights).float()
    )
    assert float(loss) == pytest.approx(total / 18, rel=1e-5)


def test_distances_are_those_of_numpy():
    difference = np.array([-3.0, 0.2, 0.0, 9.0]) / 128.0
    output = torch.tensor(difference)
    target = torch.zeros(4, dtype=torch.float64)
    units = np.abs(difference) * 128.0
    huber = np.where(units < 1, 0.5 * units**2, units - 0.5).mean() / 128.0

    for name, expected in (
        ("l1", np.abs(difference).mean()),
        ("l2", (difference**2).mean()),
        ("huber", huber),
    ):
        loss = distance_loss(name, 128.0).distance(output, target)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def _prior(ranks: Ranks, folder: str) -> Tensor:
    recipe = toy_recipe(
        Path(folder),
        loss={"color": "classes", "gan": "none"},
    )
    _, strategy = build_pretraining(recipe, ranks, 8)
    generator = strategy.phases["generator"].module
    loader = CountedLoader(
        8,
        2,
        ranks.rank,
        ranks.world_size,
    )

    assert measure_prior(generator, loader, ranks, global_batch_size=8, ab_scale=128.0) == 24
    return generator.classes.pixels_Q


def _save_prior_and_weights(ranks: Ranks, folder: str) -> None:
    prior = _prior(ranks, folder)

    recipe = toy_recipe(Path(folder), **EXACT)
    strategy = train_toy(recipe, ranks, num_steps=2, micro_batch_size=2, sgd=True)[1]
    if ranks.main:
        weights = {
            "prior": prior,
            **strategy.state()["generator"],
        }
        torch.save(
            weights,
            Path(folder) / "weights.pt",
        )


def test_two_ranks_measure_and_train_as_one(tmp_path: Path):
    on_ranks(
        2,
        _save_prior_and_weights,
        str(tmp_path),
    )
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    prior = _prior(ONE, str(tmp_path))
    assert torch.equal(two.pop("prior"), prior)
    assert prior.sum() == 24 * 16 * 16

    strategy = train_toy(
        toy_recipe(tmp_path, **EXACT), ONE, num_steps=2, micro_batch_size=2, sgd=True
    )[1]
    for name, tensor in strategy.state()["generator"].items():
        assert torch.allclose(
            two[name].double(),
            tensor.double(),
            atol=1e-6,
        ), name


def _train(run: Path, images: int) -> None:
    recipe = toy_recipe(
        run, loss=EXACT["loss"], images=images, ema_half_life_images=16, network={
            "image_size": 32, "width": 4,
        }, batch={"global_batch_size": 8, "precision": "bf16"},
    )  # fmt: skip
    pretrain(
        recipe,
        ONE,
        total_images=images,
        data_digest="d",
        train=CountedLoader(8, 4),  # type: ignore[arg-type]
        val=None,
    )


def test_a_resumed_run_keeps_its_prior_and_ends_alike(tmp_path: Path, monkeypatch: Any):
    _train(tmp_path / "whole", 32)
    _train(tmp_path / "cut", 16)
    # Nothing is left to measure on: a second measurement would fail.
    monkeypatch.delattr(CountedLoader, "shards")
    _train(tmp_path / "cut", 32)

    whole, cut = (
        latest_checkpoint(tmp_path / name / "checkpoints", ONE, print) for name in ("whole", "cut")
    )
    assert whole is not None and cut is not None
    for role in ("generator", "generator_average", "discriminator"):
        tensors = cut.tensors(role)
        for name, tensor in whole.tensors(role).items():
            assert torch.equal(tensor, tensors[name]), (role, name)
    assert cut.tensors("generator_average")["classes.pixels_Q"].sum() == 24 * 16 * 16


def test_a_folder_of_classes_colors_as_the_network_did(tmp_path: Path):
    recipe = toy_recipe(tmp_path, loss={"color": "classes", "gan": "none"})
    strategy = train_toy(recipe, ONE, num_steps=1, micro_batch_size=8)[1]
    network = strategy.evaluated("generator").eval()
    save_model(
        tmp_path / "generator",
        network,
        generator_config(recipe),
    )

    loaded, config = load_model(tmp_path / "generator", "generator")
    luminance = torch.rand(1, 1, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(
            loaded(luminance),
            network(luminance),
        )
        assert loaded(luminance).shape == (1, 2, 32, 32)
    assert config.target == "classes"


def test_the_luminance_control_sees_its_input_through_the_last_level_alone(tmp_path: Path):
    recipe = toy_recipe(tmp_path, loss={"target": "luminance", "gan": "none"})
    _, strategy, reports = train_toy(recipe, ONE, num_steps=2, micro_batch_size=8)
    assert "luminance_l1" in reports[-1]
    assert "colourfulness/output" not in reports[-1]

    network = strategy.phases["generator"].module.eval()
    luminance = torch.rand(1, 1, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    with torch.no_grad():
        *skips, last = network.encoder(luminance)
        alone = torch.tanh(
            network.decoder(
                [
                    *map(torch.zeros_like, skips),
                    last,
                ]
            )
        )
        assert torch.equal(network(luminance), alone)
    assert alone.shape == luminance.shape


@pytest.mark.parametrize(
    "loss",
    [
        {"gan": "bce"},
        {"gan": "none", "color": "classes"},
    ],
)
def test_luminance_is_learned_by_a_distance_alone(tmp_path: Path, loss: dict[str, str]):
    with pytest.raises(ValidationError, match="by a distance alone"):
        toy_recipe(tmp_path, loss={"target": "luminance", **loss})


def test_trained_norms_leave_all_other_weights_as_drawn(tmp_path: Path):
    recipe = toy_recipe(
        tmp_path,
        loss={"gan": "none"},
        optimizer={"trained": "norms"},
    )
    before = build_pretraining(recipe, ONE, 8)[1].state()["generator"]
    after = train_toy(recipe, ONE, num_steps=2, micro_batch_size=8)[1].state()["generator"]
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    assert changed
    assert all(".norm." in name for name in changed), changed


def test_onnx_gives_the_annealed_mean(tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    config = generator_config(toy_recipe(tmp_path, loss={"color": "classes", "gan": "none"}))
    network = build_model(config)
    initialise(network, 0)
    save_model(tmp_path / "generator", network, config)
    export_onnx(tmp_path / "generator", tmp_path / "model.onnx")
    assert check_onnx(tmp_path / "model.onnx", tmp_path / "generator") < 1e-4
