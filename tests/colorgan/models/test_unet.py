"""Sizes, parameter counts and inference behaviour of the networks."""

from collections.abc import Iterable

import pytest
import torch
from helpers.networks import small_classifier, small_config, small_unet
from torch import Tensor, nn

from colorgan.errors import ArchitectureError, UsageError
from colorgan.models.discriminator import Discriminator
from colorgan.models.layers import KeyedDropout
from colorgan.models.model_config import ModelConfig, check_input_size, check_norms
from colorgan.models.model_folder import build_model
from colorgan.models.modes import evaluating, initialise, set_dropout_keys, set_inference


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (all, non-trainable) numbers in Keras' way.

    Batch norm's two moving statistics count, as non-trainable.
    """
    moving = _numel(
        buffer
        for name, buffer in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )
    return _numel(module.parameters()) + moving, moving


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def test_segmenter_counts_as_the_reference() -> None:
    model = small_unet(
        image_size=256,
        width=64,
        num_outputs=21,
        tanh=False,
        bias_before_norm=True,
    )

    assert count_parameters(model) == (54_464_149, 9_856)


def test_classifier_counts_as_the_reference() -> None:
    model = small_classifier(
        image_size=256,
        width=64,
        num_classes=20,
        bias_before_norm=True,
    )
    assert count_parameters(model) == (38_507_988, 4_864)


@pytest.mark.parametrize(
    "image_size",
    [32, 64, 128, 256, 512],
)
@pytest.mark.parametrize("width", [4, 6])
def test_every_power_of_two_goes_through(image_size: int, width: int) -> None:
    model = small_unet(image_size=image_size, width=width).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 1, image_size, image_size))
        features = model.encoder(torch.randn(1, 1, image_size, image_size))
    assert out.shape == (1, 2, image_size, image_size)
    assert out.abs().max() <= 1
    assert features[-1].shape == (1, width * 8, 1, 1)


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_a_network_takes_pictures_of_other_sizes_than_its_own(kind: str) -> None:
    """Smaller, larger, and none of its halves even; every weight still learns."""
    architecture = {"image_size": 64, "num_outputs": 3}
    config = small_config(kind)
    config = config.model_copy(
        update={"architecture": config.architecture.model_copy(update=architecture)}
    )
    model = build_model(config)
    initialise(model, 0)
    set_dropout_keys(
        model,
        torch.arange(2, dtype=torch.int32),
    )

    for size in (32, 64, 96, 224):
        model.zero_grad()
        out = model(torch.randn(2, 1, size, size))
        shapes = {
            "classifier": (2, 3),
            "segmenter": (2, 3, size, size),
            "detector": (
                2,
                8,
                size // 4,
                size // 4,
            ),
        }
        assert out.shape == shapes[kind]
        out.square().sum().backward()
        assert all(each.grad is not None for each in model.parameters())


def test_single_pixels_are_not_normalised() -> None:
    def config(norm: str, size: int) -> ModelConfig:
        made = small_config("classifier", input_size=size)
        sizes = made.architecture.model_copy(update={"norm": norm, "image_size": 128})
        return made.model_copy(update={"architecture": sizes})

    check_norms(config("batch", 64), 2)
    check_norms(config("instance", 96), 1)
    for norm, batch_size in (("instance", 8), ("batch", 1)):
        with pytest.raises(UsageError, match=r"pictures of 64 pixels leave single .*128"):
            check_norms(
                config(norm, 64),
                batch_size,
            )


@pytest.mark.parametrize("size", [0, 16, 100, 2048])
def test_sizes_that_no_network_takes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"network.image_size {size}: .*multiple of 32 from 32"):
        check_input_size(size, "generator")


@pytest.mark.parametrize(
    "image_size",
    [0, 16, 48, 100, 1024],
)
def test_other_sizes_are_refused_in_a_sentence(image_size: int) -> None:
    with pytest.raises(
        ArchitectureError, match=f"image size {image_size} .*use 32, 64, 128, 256 or 512"
    ):
        small_unet(image_size=image_size, width=4)


def test_patch_maps_of_code_and_text() -> None:
    luminance = torch.zeros(1, 1, 256, 256)
    chroma = torch.zeros(1, 2, 256, 256)
    with torch.no_grad():
        assert Discriminator(width=2)(luminance, chroma).shape == (1, 1, 16, 16)
        pix2pix = Discriminator(width=2, num_strided_blocks=3, padding="pix2pix")
        assert pix2pix(luminance, chroma).shape == (1, 1, 30, 30)


def test_the_text_discriminator_sees_70_pixels() -> None:
    model = Discriminator(
        width=2,
        num_strided_blocks=3,
        padding="pix2pix",
    ).eval()
    chroma = torch.zeros(1, 2, 256, 256, requires_grad=True)
    model(torch.zeros(1, 1, 256, 256), chroma)[0, 0, 15, 15].backward()

    assert chroma.grad is not None
    seen = chroma.grad[0].abs().sum(0) > 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == 70


def test_weights_are_a_function_of_the_seed_with_the_papers_spread() -> None:
    first = small_unet(image_size=64, width=16)
    second = small_unet(image_size=64, width=16)
    initialise(first, 3)
    initialise(second, 3)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    weights = torch.cat(
        [p.detach().flatten() for n, p in first.named_parameters() if n.endswith("conv.weight")]
    )

    assert abs(float(weights.mean())) < 1e-4
    assert abs(float(weights.std()) - 0.02) < 1e-4


def test_dropout_depends_on_the_sample_alone() -> None:
    layer = KeyedDropout(0.5, salt=1)
    x = torch.ones(6, 8, 16, 16)
    keys = torch.tensor(
        [
            5,
            -7,
            5,
            123456,
            0,
            2**31 - 1,
        ],
        dtype=torch.int32,
    )
    layer.keys_B = keys
    whole = layer(x)
    layer.keys_B = keys[3:]

    assert torch.equal(
        layer(x[3:]),
        whole[3:],
    )
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])

    kept = (whole > 0).float().mean((1, 2, 3))
    assert torch.all((kept - 0.5).abs() < 0.05)
    assert float(whole.max()) == 2.0

    agreement = ((whole[0] > 0) == (whole[3] > 0)).float().mean()
    assert abs(float(agreement) - 0.5) < 0.05


def test_dropout_without_keys_is_an_error() -> None:
    with pytest.raises(ArchitectureError, match="set_dropout_keys"):
        KeyedDropout(0.5, salt=1)(torch.ones(2, 4))


def test_running_inference_does_not_see_the_other_pictures_and_the_papers_does() -> None:
    model = small_unet(image_size=32, width=4)
    initialise(model, 0)
    x = torch.randn(4, 1, 32, 32)
    set_dropout_keys(
        model,
        torch.arange(4, dtype=torch.int32),
    )
    model.train()(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()

    with torch.no_grad():
        alone = model(x[:1])
        together = model(x)[:1]
        assert torch.allclose(alone, together, atol=1e-6)
        set_inference(model, "paper")
        together = model(x)[:1]
        set_dropout_keys(
            model,
            torch.arange(1, dtype=torch.int32),
        )
        assert not torch.allclose(model(x[:1]), together, atol=1e-4)
        set_inference(model, "running")
        assert torch.allclose(
            model(x[:1]),
            alone,
            atol=1e-6,
        )

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_evaluating_gives_every_part_its_mode_back() -> None:
    model = small_unet(image_size=32, width=4).train()
    model.encoder.blocks[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert model.training
    assert not model.encoder.blocks[1].training
