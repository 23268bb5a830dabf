"""Backbones in the U-Net encoder's place: levels, sizes, weights by seed or file, one's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.timm_modules import timm_on_the_path
from safetensors.torch import save_file
from torch import Tensor, nn

from colorgan.errors import ArchitectureError, ColorganError, ModelFolderError
from colorgan.models.backbones import (
    check_encoder,
    load_backbone_weights,
    luminance_encoder,
    register_backbone,
)
from colorgan.models.layers import fitted
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model
from colorgan.models.modes import initialise, set_dropout_keys
from colorgan.models.unet import UNet


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """Timm itself."""
    with timm_on_the_path() as module:
        yield module


def config(encoder: str, image_size: int, kind: str = "generator") -> ModelConfig:
    sizes = {"width": 4, "norm": "batch", "bias_before_norm": False, "dropout": 0.5}
    architecture = Architecture(
        image_size=image_size, encoder=encoder, encoder_input="luminance", **sizes
    )
    classes = ["one"] if kind == "segmenter" else []  # beside background
    return ModelConfig.model_validate(
        {"kind": kind, "architecture": architecture, "ab_scale": 110.0, "classes": classes}
    )


def drawn(encoder: str, image_size: int, seed: int = 0, kind: str = "generator") -> Any:
    model = build_model(config(encoder, image_size, kind))
    initialise(model, seed)
    return model


@pytest.mark.parametrize(
    ("name", "image_size", "channels", "sides"),
    [
        (
            "alexnet",
            224,
            (64, 192, 256),
            (55, 27, 13),
        ),
        (
            "alexnet",
            64,
            (64, 192, 256),
            (15, 7, 3),
        ),
        ("alexnet", 33, (64, 192, 256), (7, 3, 1)),
        (
            "resnet18",
            64,
            (64, 64, 128, 256, 512),
            (32, 16, 8, 4, 2),
        ),
        (
            "resnet18",
            71,
            (64, 64, 128, 256, 512),
            (36, 18, 9, 5, 3),
        ),
        (
            "convnext_atto",
            64,
            (40, 80, 160, 320),
            (16, 8, 4, 2),
        ),
        (
            "efficientnet_b0",
            50,
            (16, 24, 40, 112, 320),
            (25, 13, 7, 4, 2),
        ),
    ],
)
def test_a_generator_of_any_backbone_at_any_size(
    name: str,
    image_size: int,
    channels: tuple[int, ...],
    sides: tuple[int, ...],
    timm: Any,
) -> None:
    """Chroma has the photo's side, every weight has a gradient, and one image suffices."""
    model = drawn(name, image_size)
    check_encoder(model.encoder, image_size)
    set_dropout_keys(
        model.train(),
        torch.arange(2, dtype=torch.int32),
    )
    luminance = torch.linspace(
        -1,
        1,
        2 * image_size**2,
    ).view(2, 1, image_size, image_size)
    chroma = model(luminance)
    chroma.square().mean().backward()

    levels = model.eval().encoder(luminance[:1])
    assert chroma.shape == (2, 2, image_size, image_size)
    assert model.encoder.channels == channels
    assert [tuple(level.shape[1:]) for level in levels] == [
        (width, side, side) for width, side in zip(channels, sides, strict=True)
    ]
    assert not [key for key, each in model.named_parameters() if each.grad is None]


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "efficientnet_b0"])
def test_weights_depend_on_the_seed_alone(name: str, timm: Any) -> None:
    first = drawn(name, 64, seed=3).state_dict()
    state = torch.random.get_rng_state()
    torch.rand(7)
    again = drawn(name, 64, seed=3).state_dict()
    other = drawn(name, 64, seed=4).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    kernels = [key for key, tensor in first.items() if tensor.ndim == 4]
    assert not [key for key in kernels if torch.equal(first[key], other[key])]

    # A draw is no event for whoever draws from torch's common generator.
    torch.random.set_rng_state(state)
    model = build_model(config("alexnet", 64))
    state = torch.random.get_rng_state()
    initialise(model, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_decoder_as_behind_the_unet(timm: Any) -> None:
    """Blocks, dropout and output by the levels' widths, in another kind of model, too."""
    classes = drawn("resnet18", 64, kind="segmenter")

    assert isinstance(classes, UNet)
    assert not classes.tanh
    shapes = [tuple(block.conv.weight.shape) for block in classes.decoder.blocks]

    assert shapes == [
        (512, 256, 4, 4),
        (512, 128, 4, 4),
        (256, 64, 4, 4),
        (128, 64, 4, 4),
    ]
    assert [block.dropout.probability for block in classes.decoder.blocks] == [0.5, 0.5, 0.5, 0.0]


def test_fitting_cuts_and_repeats_at_the_end() -> None:
    picture = torch.arange(12.0).view(1, 1, 3, 4)

    assert torch.equal(
        fitted(picture, torch.empty(2, 3)),
        picture[..., :2, :3],
    )

    larger = fitted(picture, torch.empty(5, 6))
    oracle = nn.functional.pad(
        picture,
        (0, 2, 0, 2),
        mode="replicate",
    )

    assert torch.equal(larger, oracle)
    assert fitted(picture, torch.empty(3, 4)) is picture


def test_weights_of_a_color_network_are_added_up(timm: Any, tmp_path: Path) -> None:
    """Oracle: timm's network given a picture whose three channels are the same."""
    torch.manual_seed(2)
    network = timm.create_model("resnet18").eval()
    save_file(network.state_dict(), tmp_path / "color.safetensors")
    encoder = drawn("resnet18", 64).encoder
    load_backbone_weights(encoder, tmp_path / "color.safetensors", 64)

    luminance = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours = encoder.eval()(luminance)[-1]
        theirs = network.forward_features(luminance.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_of_a_registered_backbone_are_its_own(timm: Any, tmp_path: Path) -> None:
    source = drawn("alexnet", 64, seed=1).encoder
    target = drawn("alexnet", 64, seed=2).encoder
    save_file(source.body.state_dict(), tmp_path / "own.safetensors")
    load_backbone_weights(target, tmp_path / "own.safetensors", 64)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)

    with pytest.raises(ModelFolderError, match="is not a file"):
        load_backbone_weights(target, tmp_path / "none.safetensors", 64)
    save_file(
        {"features.0.weight": torch.zeros(1)},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(ModelFolderError, match="does not fit"):
        load_backbone_weights(target, tmp_path / "other.safetensors", 64)
    with pytest.raises(ArchitectureError, match="encoder_weights is for a backbone"):
        load_backbone_weights(
            drawn("unet", 64).encoder,
            tmp_path / "own.safetensors",
            64,
        )


class Shallow(nn.Module):
    """Two levels, as a user may write them."""

    channels = (4, 8)
    strides = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 2, 1)
        self.second = nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, luminance_B1HW: Tensor) -> list[Tensor]:
        first = self.first(luminance_B1HW)
        return [first, self.second(first.relu())]


def test_a_backbone_of_ones_own_in_three_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered in Python, or in a module that the environment names for the commands."""
    register_backbone("shallow", Shallow)
    assert drawn("shallow", 45).eval()(torch.zeros(1, 1, 45, 45)).shape == (1, 2, 45, 45)

    (tmp_path / "grey_nets.py").write_text(
        "from colorgan.models.alexnet import AlexNet\n"
        "from colorgan.models.backbones import register_backbone\n"
        'register_backbone("grey_alexnet", AlexNet)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLORGAN_BACKBONES", "grey_nets")
    try:
        assert luminance_encoder("grey_alexnet").channels == (64, 192, 256)
    finally:
        sys.modules.pop("grey_nets", None)


class OnePart(Shallow):
    """A part that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(1, 1)


class Wrong(Shallow):
    """Other channels than it says."""

    channels = (4, 9)


def with_attributes(**attributes: Any) -> type[Shallow]:
    return type("Changed", (Shallow,), attributes)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (OnePart, "idle.weight and 1 other parts have no say in its last level"),
        (Wrong, r"gives features of \[\(4, 16, 16\), \(8, 8, 8\)\] for 32x32"),
        (with_attributes(strides=(2, 8)), "has strides 2, 8 for 2 levels: they must double"),
        (with_attributes(strides=(1, 2)), "has strides 1, 2 for 2 levels"),
        (with_attributes(strides=(2,)), "has strides 2 for 2 levels"),
        (with_attributes(channels=None), "needs the attributes channels and strides"),
    ],
)
def test_a_backbone_that_cannot_be_trained_is_refused(make: type[nn.Module], sentence: str) -> None:
    register_backbone("tried", make)
    with pytest.raises(ColorganError, match=sentence):
        check_encoder(luminance_encoder("tried"), 32)


def test_names_that_stand_for_nothing(monkeypatch: pytest.MonkeyPatch, timm: Any) -> None:
    with pytest.raises(ArchitectureError, match="timm knows no network 'resnet19'"):
        luminance_encoder("resnet19")
    with pytest.raises(ArchitectureError, match="cannot be called unet"):
        register_backbone("unet", Shallow)
    monkeypatch.setenv("COLORGAN_BACKBONES", "no_such_module_here")
    with pytest.raises(ArchitectureError, match="COLORGAN_BACKBONES names 'no_such_module_here'"):
        luminance_encoder("resnet19")


def test_without_timm_the_advice_can_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArchitectureError, match=r"pip install 'timm"):
        luminance_encoder("resnet18")


def test_folders_of_older_versions_hold_what_they_held() -> None:
    """An encoder without a word about its input was imported, and sees the grey photo."""
    sizes = {"image_size": 64, "width": 4, "norm": "batch", "bias_before_norm": False}
    older = Architecture.model_validate({**sizes, "dropout": 0.5, "encoder": "resnet18"})

    assert older.encoder_input == "photo"
    assert Architecture.model_validate({**sizes, "dropout": 0.5}).encoder_input == "luminance"
    for kind, encoder, sees in (
        ("generator", "resnet18", "photo"),
        ("encoder", "resnet18", "luminance"),
        ("encoder", "unet", "luminance"),
    ):
        fields = {**sizes, "dropout": 0.5, "encoder": encoder, "encoder_input": sees}
        with pytest.raises(ValueError, match=f"kind {kind} needs"):
            ModelConfig.model_validate({"kind": kind, "architecture": fields, "ab_scale": 1.0})
