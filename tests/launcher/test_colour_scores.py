"""A generator scored at the network's size and at each photo's own, with best and worst."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Command
from PIL import Image
from safetensors.torch import save_file
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from colorgan.errors import UsageError
from colorgan.models.colorizing import color_photo
from colorgan.models.model_config import CONFIG, WEIGHTS, Architecture, ModelConfig
from colorgan.models.model_folder import build_model, load_model
from colorgan.models.modes import initialise
from datasets.corpora.folder import open_folder
from shards.packing.pack import pack

SIZES = ((40, 61), (33, 33), (90, 50), (8, 70))  # the last one is too small for the window of SSIM


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator")
    architecture = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.0
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=110.0)
    module = build_model(config)
    initialise(module, 3)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.mul_(1e-3)  # so that the output is not all near 0
    save_file(module.state_dict(), out / WEIGHTS)
    (out / CONFIG).write_text(config.model_dump_json())
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for index, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[0:height, 0:width]
        picture = np.stack(
            [rows * 2 + 20 * index, 250 - columns * 2, (rows + columns) % 200], axis=-1
        )
        Image.fromarray(picture.astype(np.uint8)).save(root / f"{index}.jpg", quality=95)
    for policy in ("original", "squash:32"):
        pack(open_folder(root, "all"), root / policy[:6], root=root, image_policy=policy, workers=0)
    return root


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_scores_at_own_size_are_those_of_what_colorize_gives(
    generator: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    words = ["--model", generator, "--data", photos / "origin", "--out", tmp_path / "scores"]
    told = command("evaluate", *words, "--own_size", "true", "--num_pictures", 2)
    assert (
        "4 held-out images, running inference, at 32x32" in told
        and "3 of them at their own sizes" in told
    )
    assert "CIEDE2000" in told and "ratio of the means" in told
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    network, config = load_model(generator)
    psnrs, differences = [], []
    for index in range(3):
        photo = read(photos / f"{index}.jpg")
        pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)
        _, colored = color_photo(network, pixels, image_size=32, ab_scale=config.ab_scale)
        picture = colored.permute(1, 2, 0).double().numpy()
        psnrs.append(peak_signal_noise_ratio(photo / 255.0, picture, data_range=1.0))
        differences.append(deltaE_ciede2000(rgb2lab(photo / 255.0), rgb2lab(picture)).mean())
    assert scores["psnr_own_size"] == pytest.approx(np.mean(psnrs), rel=1e-4)
    assert scores["psnr_min_own_size"] == pytest.approx(min(psnrs), rel=1e-4)
    assert scores["ciede2000_own_size"] == pytest.approx(np.mean(differences), rel=1e-4)
    assert (scores["images"], scores["images_own_size"]) == (4, 3)
    ratio = scores["colourfulness"] / scores["original_colourfulness"]
    assert scores["colourfulness_ratio"] == pytest.approx(ratio)
    for name in ("coloured.png", "best.png", "worst.png"):
        assert read(tmp_path / "scores" / name).shape[1] > 300
    best, worst = tmp_path / "scores" / "best.png", tmp_path / "scores" / "worst.png"
    assert best.read_bytes() != worst.read_bytes()


def test_own_size_needs_originals(generator: Path, photos: Path, command: Command) -> None:
    with pytest.raises(UsageError, match=r"--image original.*squash:32"):
        command("evaluate", "--model", generator, "--data", photos / "squash", "--own_size", "true")
    assert "PSNR" in command("evaluate", "--model", generator, "--data", photos / "squash")
