"""The encoder to take along: the network's own features, in any size, color or grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import small_config

from colorgan.color import rgb_to_lab_B3HW
from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.model_folder import build_model, load_model, save_model
from colorgan.models.modes import initialise
from colorgan.models.pretrained import find_model
from colorgan.models.pyramid import Encoder, FeatureInfo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a generator of 64 px, whose sixth level is deeper than stride 32."""
    config = small_config("generator")
    architecture = config.architecture.model_copy(update={"image_size": 64})
    config = config.model_copy(update={"architecture": architecture})
    model = build_model(config)
    initialise(model, 0)
    out = tmp_path_factory.mktemp("pyramid") / "generator"
    save_model(out, model, config)

    return out


def test_features_are_the_network_s_own(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder)
    network, _ = load_model(folder)
    images = torch.rand(2, 3, 64, 64)
    luminance = rgb_to_lab_B3HW(images)[:, :1] / 50 - 1
    with torch.no_grad():
        levels = encoder(images)
        expected = network.encoder(luminance)

    assert len(expected) == 6
    assert len(levels) == 5
    for level, whole in zip(levels, expected, strict=False):
        torch.testing.assert_close(level, whole, rtol=1e-4, atol=1e-5)

    assert encoder.channels == tuple(level.shape[1] for level in levels)
    assert encoder.strides == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    "size",
    [
        (32, 32),
        (33, 70),
        (128, 64),
        (1, 5),
    ],
)
def test_any_size_is_extended_to_the_deepest_stride(folder: Path, size: tuple[int, int]) -> None:
    encoder = Encoder.from_pretrained(folder)
    with torch.no_grad():
        levels = encoder(torch.rand(1, 3, *size))
    height, width = (-(-side // 32) * 32 for side in size)

    for level, stride in zip(levels, encoder.strides, strict=True):
        assert level.shape[2:] == (
            height // stride,
            width // stride,
        )


def test_grey_bytes_and_pil_see_the_same(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder)
    grey = np.random.default_rng(0).integers(
        2,
        256,
        (40, 64),
        dtype=np.uint8,
    )
    one = encoder.predict(grey)
    several = encoder.predict(
        [
            np.stack([grey] * 3, axis=-1),
            torch.from_numpy(grey / 255.0),
        ]
    )
    for other in several:
        for first, second in zip(one, other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        batch = encoder(torch.from_numpy(grey)[None, None])

    assert torch.equal(batch[0][0], one[0])


def test_every_part_is_trained_further(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder).train()
    sum(level.mean() for level in encoder(torch.rand(2, 1, 64, 64))).backward()  # type: ignore[union-attr]
    assert all(part.grad is not None for part in encoder.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.rand(1, 3, 32, 32) * 4 - 2,
            "without a mean",
        ),
        (
            torch.rand(3, 32, 32),
            "not 3 x 32 x 32",
        ),
        (
            torch.rand(1, 32, 32, 3),
            "not 1 x 32 x 32 x 3",
        ),
        (
            torch.zeros(1, 1, 32, 32, dtype=torch.int64),
            "not int64",
        ),
        (
            np.zeros((32, 32, 3)),
            "encoder.predict",
        ),
    ],
)
def test_other_batches_are_refused(folder: Path, images: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Encoder.from_pretrained(folder)(images)


def test_feature_info_answers_as_timm_s() -> None:
    info = FeatureInfo((8, 16), (2, 4))

    assert (
        info.channels(),
        info.reduction(),
    ) == ([8, 16], [2, 4])
    assert (
        info.channels(1),
        info.reduction([1]),
    ) == (16, [4])
    assert info.get_dicts()[1]["num_chs"] == info[1]["num_chs"] == 16
    assert len(info) == 2


@pytest.mark.parametrize(
    "name", ["runs/absent/generator", "/absent/generator", "generator", Path("runs/generator")]
)
def test_a_missing_folder_is_called_one(name: str | Path) -> None:
    with pytest.raises(ModelFolderError, match="no such folder; models are written by"):
        find_model(name)


def test_a_name_that_the_hub_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Nothing listens there: what a machine without network meets.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError, match="runs/generator: no such folder, and no model of"):
        find_model("runs/generator", cache_dir=tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(ModelFolderError, match="is a file"):
        find_model(tmp_path / "model")
