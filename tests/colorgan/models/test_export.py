"""Encoders as other libraries load them: the same features, strictly, in one channel or three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.timm_modules import timm_on_the_path
from safetensors.torch import load_file
from torch import Tensor, nn

from colorgan.color import rgb_to_lab_B3HW
from colorgan.errors import UsageError
from colorgan.models.export import exported
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from colorgan.tasks.consolidating import export_encoder

LUMINANCE = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """Timm itself."""
    with timm_on_the_path() as module:
        yield module


def generator_folder(out: Path, encoder: str) -> tuple[Path, Any]:
    """Return a generator's folder and its encoder, whose norms have statistics and scales."""
    sizes = {"image_size": 64, "width": 4, "norm": "batch", "bias_before_norm": False}
    architecture = Architecture.model_validate(
        {**sizes, "dropout": 0.5, "encoder": encoder, "encoder_input": "luminance"}
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=110.0)
    model: Any = build_model(config)
    initialise(model, 2)
    torch.manual_seed(7)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    save_model(out, model, config)
    return out, model.eval().encoder


def features(network: Any, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        levels: list[Tensor] = network(images)
    return levels


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
@pytest.mark.parametrize(("rgb", "num_classes"), [(False, 1000), (True, 0)])
def test_timm_loads_it_strictly(
    name: str, rgb: bool, num_classes: int, timm: Any, tmp_path: Path
) -> None:
    """Oracle: timm's whole network by its checkpoint_path, asked for its intermediate features."""
    folder, encoder = generator_folder(tmp_path / "g", name)
    text = export_encoder(folder, "timm", rgb=rgb, num_classes=num_classes)
    path = tmp_path / f"g.timm{'-rgb' if rgb else ''}.safetensors"
    channels = 3 if rgb else 1
    network = timm.create_model(
        name, in_chans=channels, num_classes=num_classes, checkpoint_path=str(path)
    )
    ours = features(encoder, LUMINANCE)
    with torch.no_grad():
        theirs = network.eval().forward_intermediates(
            LUMINANCE.expand(-1, channels, -1, -1), intermediates_only=True
        )
    for mine, other in zip(ours, theirs[-len(ours) :], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert "timm loads it strictly" in text and f"num_classes={num_classes}" in text
    # The same model gives the same file, and nothing else is left beside it.
    before = path.read_bytes()
    export_encoder(folder, "timm", rgb=rgb, num_classes=num_classes)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["g", path.name])


def test_what_an_rgb_user_sees(timm: Any, tmp_path: Path) -> None:
    """Three equal channels of luminance: the same features. Photos in [-1, 1]: nearly the same."""
    _, encoder = generator_folder(tmp_path / "g", "resnet18")
    kernel = exported(encoder, "timm", rgb=True)["conv1.weight"]
    one = exported(encoder, "timm", rgb=False)["conv1.weight"]
    torch.testing.assert_close(kernel.sum(1, keepdim=True), one, rtol=1e-5, atol=1e-6)

    grey_B3HW = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(
        1, 3, 64, 64
    )
    luminance_B1HW = rgb_to_lab_B3HW(grey_B3HW)[:, :1] / 50 - 1
    ours = nn.functional.conv2d(luminance_B1HW, one, stride=2, padding=3)
    theirs = nn.functional.conv2d(2 * grey_B3HW - 1, kernel, stride=2, padding=3)
    assert (ours - theirs).abs().mean() < 0.1 * ours.abs().mean()


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet18", ("fc.",)), ("alexnet", ("classifier.",)), ("vgg11_bn", ("classifier.",))],
)
def test_torchvisions_names(name: str, head: tuple[str, ...], timm: Any, tmp_path: Path) -> None:
    """Oracle: torchvision's network without its classifier, given three equal channels."""
    from torchvision import models

    _, encoder = generator_folder(tmp_path / "g", name)
    network = getattr(models, name)(weights=None)
    told = network.load_state_dict(exported(encoder, "torchvision", rgb=True), strict=False)
    assert not told.unexpected_keys
    assert all(key.startswith(head) for key in told.missing_keys)

    last = features(encoder, LUMINANCE)[-1]
    images = LUMINANCE.expand(-1, 3, -1, -1)
    # Of torchvision, the layers ahead of its pooling for the classifier.
    layers = [*network.children()][:-2] if name == "resnet18" else [*network.features]
    if name == "alexnet":
        layers = layers[:-1]
    theirs = features(nn.Sequential(*layers).eval(), images)
    torch.testing.assert_close(last, theirs, rtol=1e-4, atol=1e-4)


def test_segmentation_models_pytorch_loads_it_strictly(timm: Any, tmp_path: Path) -> None:
    """Where the library is installed: torchvision's names are those of its encoders."""
    library = pytest.importorskip("segmentation_models_pytorch")
    _, encoder = generator_folder(tmp_path / "g", "resnet18")
    network = library.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3)
    network.encoder.load_state_dict(exported(encoder, "torchvision", rgb=False))
    theirs = features(network.encoder.eval(), LUMINANCE)[1:]
    for mine, other in zip(features(encoder, LUMINANCE), theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_its_own_names(timm: Any, tmp_path: Path) -> None:
    """Also the U-Net's encoder, for which other libraries have no name."""
    folder, encoder = generator_folder(tmp_path / "a", "alexnet")
    export_encoder(folder, "safetensors", rgb=False, num_classes=0)
    written = load_file(tmp_path / "a.encoder.safetensors")
    assert all(torch.equal(written[key], each) for key, each in encoder.body.state_dict().items())

    folder, encoder = generator_folder(tmp_path / "u", "unet")
    export_encoder(folder, "safetensors", rgb=False, num_classes=0)
    encoder.load_state_dict(load_file(tmp_path / "u.encoder.safetensors"))


@pytest.mark.parametrize(
    ("name", "format", "rgb", "sentence"),
    [
        ("unet", "timm", False, "the format timm is for generators with a network of timm"),
        ("unet", "torchvision", True, "the format torchvision is for generators"),
        ("alexnet", "timm", False, "timm has no AlexNet: use the format torchvision"),
        ("convnext_atto", "torchvision", False, "torchvision does not name layers as convnext_at"),
        ("alexnet", "safetensors", True, "rgb is for the formats timm and torchvision"),
    ],
)
def test_what_another_library_has_not_is_refused(
    name: str, format: Any, rgb: bool, sentence: str, timm: Any, tmp_path: Path
) -> None:
    folder, _ = generator_folder(tmp_path / "g", name)
    with pytest.raises(UsageError, match=sentence):
        export_encoder(folder, format, rgb=rgb, num_classes=1000)
    assert [each.name for each in tmp_path.iterdir()] == ["g"]
