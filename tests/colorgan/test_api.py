"""The package's own names: light to import, colors in kind, a loader per rank, scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import small_config
from helpers.tiny_set import tiny_sample, write_set
from PIL import Image

import colorgan
from colorgan import Generator, Loader, colorize, score
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError, UsageError
from colorgan.evaluation.evaluate import evaluate
from colorgan.evaluation.record import read_evaluation
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise

PROJECT = Path(__file__).parents[2]
GREY = np.random.default_rng(0).integers(
    2,
    256,
    (20, 30),
    dtype=np.uint8,
)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder("generator", tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [tiny_sample(index) for index in range(22)]
    return write_set(
        tmp_path_factory.mktemp("api") / "set",
        samples,
    )


def _folder(kind: str, root: Path) -> Path:
    config = small_config(
        kind,
        2 if kind == "generator" else 3,
        classes=("cat", "dog", "owl"),
    )
    model = build_model(config)
    initialise(model, 0)
    save_model(
        root / kind,
        model,
        config,
    )

    return root / kind


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, colorgan; print('torch' in sys.modules, 'colorize' in dir(colorgan))"
    words = [sys.executable, "-c", code]
    output = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False True"
    with pytest.raises(AttributeError, match="no attribute 'Colorize'"):
        _ = colorgan.Colorize


def test_classes_are_names_of_the_models_package_too() -> None:
    for name in ("Classifier", "Detector", "Encoder", "Generator", "Segmenter"):
        assert getattr(colorgan.models, name) is getattr(colorgan, name)
    with pytest.raises(AttributeError, match="no attribute 'Colorizer'"):
        _ = colorgan.models.Colorizer


def test_colors_come_in_the_photo_s_kind(generator: Path) -> None:
    loaded = Generator.from_pretrained(generator)
    image = colorize(
        Image.fromarray(GREY),
        generator,
    )
    array = colorize(GREY, loaded)
    tensor = colorize(
        torch.from_numpy(GREY),
        loaded,
    )

    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert (array.dtype, array.shape) == (
        np.uint8,
        (20, 30, 3),
    )
    assert (
        tensor.dtype,
        tensor.shape,
    ) == (torch.uint8, (3, 20, 30))
    assert np.array_equal(np.asarray(image), array)
    assert np.array_equal(
        tensor.permute(1, 2, 0).numpy(),
        array,
    )
    assert array.std(axis=2).max() > 0  # not grey


def test_a_photo_of_floats_is_no_longer_black(generator: Path) -> None:
    loaded = Generator.from_pretrained(generator)
    floats = colorize(GREY / 255.0, loaded)

    assert floats.dtype == np.float32
    assert np.abs(floats * 255 - colorize(GREY, loaded)).max() <= 0.51
    with pytest.raises(UsageError, match="divide by 255"):
        colorize(
            GREY.astype(np.float32),
            loaded,
        )


def test_a_missing_generator_is_called_a_missing_folder() -> None:
    with pytest.raises(ModelFolderError, match="runs/pretrain/generator: no such folder"):
        colorize(GREY, "runs/pretrain/generator")


def _ids(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch.sample_ids_B.tolist()]


def test_one_iteration_is_one_epoch_in_another_order(packed: Path) -> None:
    with Loader(packed, image_size=32, batch_size=11, targets="classes") as loader:
        assert len(loader) == 2
        first = _ids(loader)
        second = _ids(loader)
        assert sorted(first) == sorted(second) == list(range(22))
        assert first != second
        batch = next(iter(loader))
        assert batch.lab_B3HW.shape == (11, 3, 32, 32)
        assert batch.classes_BC is not None

    with Loader(packed, image_size=32, batch_size=11) as again:
        again.images_seen = 22
        assert _ids(again) == second


def test_ranks_share_each_global_batch(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loader(packed, image_size=32, batch_size=4) as alone:
        expected = _ids(alone)[:16]

    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with Loader(packed, image_size=32, batch_size=4) as loader:
            assert len(loader) == 2
            parts.append(_ids(loader))
    both = [parts[rank][step : step + 4] for step in (0, 4) for rank in (0, 1)]
    assert [number for part in both for number in part] == expected


def test_without_shuffling_every_image_comes_once_in_order(packed: Path) -> None:
    with Loader(packed, image_size=32, batch_size=8, shuffle=False) as loader:
        assert len(loader) == 3
        assert _ids(loader) == list(range(22))


def test_scores_are_the_command_s(packed: Path, tmp_path: Path) -> None:
    folder = _folder("classifier", tmp_path)
    scores = score(folder, packed, device="cpu")
    words = {
        "model": folder,
        "data": [str(packed)],
        "out": tmp_path / "out",
    }
    evaluate(
        EvaluateSettings.model_validate(words),
        Ranks.single(),
    )

    assert scores == pytest.approx(read_evaluation(tmp_path / "out").scores)
    assert scores["images"] == 22


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"image_size": -1}, "image_size -1: at least 1"),
        ({"targets": "class"}, "targets 'class': one of none, classes, mask, boxes"),
        ({"ab_scale": 0}, "ab_scale 0: more than 0"),
        ({"device": "cuda"}, "device cuda: PyTorch finds 0 GPUs here"),
        ({"device": "gpu"}, "device 'gpu': cpu, cuda or cuda:NUMBER"),
    ],
)
def test_a_loader_s_mistakes_are_told(
    packed: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        Loader(packed, **{"image_size": 32, "batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"device": "gpu"}, "device 'gpu': one of auto, cuda, cpu"),
        ({"data": []}, "data: no folder"),
    ],
)
def test_a_score_s_mistakes_are_told(
    generator: Path, packed: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        score(**{"model": generator, "data": packed, **arguments})


def test_a_photo_s_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"generator: a folder, .* not NoneType"):
        colorize(GREY, None)  # type: ignore[arg-type]
    classifier = colorgan.Classifier.from_pretrained(_folder("classifier", tmp_path))
    for batch_size in (0, -1):
        with pytest.raises(UsageError, match=r"batch_size .*: at least 1"):
            classifier.predict([GREY, GREY], batch_size=batch_size)
