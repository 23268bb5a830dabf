"""Encoders of timm as a start: imported, fine-tuned, probed, compared; others refused.

timm and torchvision lie in a folder of their own in the environment (see the Makefile).
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import LAUNCHER, Command
from helpers.timm_modules import timm_on_the_path
from safetensors.torch import load_file, save_file
from torch import nn

from colorgan.color import rgb_to_lab_B3HW
from colorgan.config.recipe import FinetuneRecipe
from colorgan.errors import ColorganError, ModelFolderError, UsageError
from colorgan.models.model_config import CONFIG, WEIGHTS, Architecture, ModelConfig
from colorgan.models.model_folder import build_model, load_model, save_model
from colorgan.study.arms import network_of_folder, shared_network
from colorgan.tasks.initial_model import initial_model
from colorgan.tasks.transfer import build_stage, stages_in_images

NAME = "resnet10t"  # timm's smallest residual network; its stem is one that torchvision's have not
TASKS = {"classify": "classifier", "segment": "segmenter", "detect": "detector"}


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """Timm itself."""
    with timm_on_the_path() as module:
        yield module


@pytest.fixture(scope="module")
def weights(timm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a classification network as timm's users save it, with its own statistics."""
    torch.manual_seed(5)
    network = timm.create_model(NAME)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    path: Path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(network.state_dict(), path)
    torch.save(network.state_dict(), path.with_suffix(".pth"))
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the generator to compare with: 32x32, instance norm, dropout in the decoder."""
    return generator_folder(tmp_path_factory.mktemp("generator") / "g32", 32)


def generator_folder(out: Path, image_size: int, **others: Any) -> Path:
    sizes = {"norm": "instance", "bias_before_norm": True, "dropout": 0.25, "width": 4, **others}
    config = ModelConfig(
        kind="generator", architecture=Architecture(image_size=image_size, **sizes), ab_scale=110.0
    )
    save_model(out, build_model(config), config)
    return out


@pytest.fixture(scope="module")
def folder(weights: Path, generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "imported"
    main = runpy.run_path(str(LAUNCHER / "import_encoder.py"), run_name="launcher_import_encoder")[
        "main"
    ]
    words = (
        "--encoder",
        NAME,
        "--weights",
        str(weights),
        "--like",
        str(generator),
        "--out",
        str(out),
    )
    assert main(list(words)) == 0
    return out


def test_features_are_timms_of_the_grey_photo(timm: Any, weights: Path, folder: Path) -> None:
    """Oracle: timm's own network, given the grey sRGB photo with ImageNet's mean and deviation."""
    oracle = timm.create_model(
        NAME, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}
    )
    grey_B3HW = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(
        2, 3, 32, 32
    )
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    model, config = load_model(folder, "encoder")
    luminance_B1HW = rgb_to_lab_B3HW(grey_B3HW)[:, :1] / 50.0 - 1.0
    with torch.no_grad():
        ours, theirs = model(luminance_B1HW), oracle.eval()((grey_B3HW - mean) / std)
    assert config.architecture.encoder == NAME
    assert [tuple(level.shape[1:]) for level in ours] == [
        (64, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
        (512, 1, 1),
    ]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_both_kinds_of_file_give_the_same_folder(
    weights: Path, folder: Path, generator: Path, suffix: str, tmp_path: Path, command: Command
) -> None:
    told = command(
        "import_encoder",
        "--encoder",
        NAME,
        "--weights",
        weights.with_suffix(suffix),
        "--like",
        generator,
        "--out",
        tmp_path / "e",
    )
    assert "64 at 1/2, 64 at 1/4, 128 at 1/8, 256 at 1/16, 512 at 1/32" in told
    assert (tmp_path / "e" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_starts_from_it(
    task: str, folder: Path, packed: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    """Frozen, the encoder stays the imported one; the written model is evaluated as any other."""
    data = (
        "--data.train",
        packed["voc-train"],
        "--data.val",
        packed["voc-val"],
        "--launch.torch_threads",
        1,
    )
    command(
        "finetune",
        "--task",
        task,
        "--init",
        folder,
        "--run",
        tmp_path,
        *data,
        "--head_width",
        8,
        "--stages",
        "[{epochs: 1, learning_rate: 0.001, features: frozen}]",
        "--data.decode_threads",
        1,
    )
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "model" / WEIGHTS)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert json.loads((tmp_path / "model" / CONFIG).read_text())["kind"] == TASKS[task]
    told = command("evaluate", "--model", tmp_path / "model", "--data", packed["voc-val"])
    assert "12 images" in told


def test_all_of_it_learns_and_the_rest_is_drawn(folder: Path, tmp_path: Path) -> None:
    """What is not frozen is trained; the decoder is drawn from the seed, not taken."""
    recipe = FinetuneRecipe(run=tmp_path, task="segment", init=str(folder))
    first, _ = initial_model(recipe, ("a", "b"), ())
    second, _ = initial_model(recipe.model_copy(update={"seed": 1}), ("a", "b"), ())
    theirs = second.state_dict()
    for name, tensor in first.state_dict().items():
        if name.startswith("encoder.") or (name.endswith("weight") and tensor.ndim == 4):
            assert torch.equal(tensor, theirs[name]) == name.startswith("encoder."), name
    build_stage(first, recipe, stages_in_images(recipe, 8)[0])
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_probes_and_studies_take_it(
    folder: Path, generator: Path, packed: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    """Beside a generator it is an arm of a study; alone it is not; its input must match."""
    words = (
        "--data.train",
        packed["voc-train"],
        "--data.test",
        packed["voc-val"],
        "--out",
        tmp_path,
    )
    command("probe", "--model", folder, "--protocol", "knn", *words)
    levels = json.loads((tmp_path / "probe.json").read_text())["levels"]
    assert [(level["channels"], level["side"]) for level in levels] == [
        (64, 16),
        (64, 8),
        (128, 4),
        (256, 2),
        (512, 1),
    ]

    imported, ours = network_of_folder(folder), network_of_folder(generator)
    with pytest.raises(ColorganError, match="no arm is a generator"):
        shared_network({"imported": imported})

    network = shared_network({"ours": ours, "imported": imported})
    assert network == {
        **{"image_size": 32, "ab_scale": 110.0, "width": 4},
        **{"norm": "instance", "bias_before_norm": True, "dropout": 0.25},
    }
    for key, image_size, others in (("image_size", 64, {}), ("dropout", 32, {"dropout": 0.5})):
        other = network_of_folder(generator_folder(tmp_path / key, image_size, **others))
        with pytest.raises(ColorganError, match=f"ours has {key} .*, imported has"):
            shared_network({"ours": other, "imported": imported})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--encoder", "resnet999"), "^timm knows no network 'resnet999'"),
        (("--encoder", "hf-hub:someone/something"), "^timm knows no network"),
        (
            ("--encoder", "vit_tiny_patch16_224"),
            "^timm's vit_tiny_patch16_224 has features of strides .* half the side",
        ),
        (
            ("--encoder", "mambaout_femto"),
            r"^timm's mambaout_femto gives features of \[\(8, 8, 48\)",
        ),
        (
            ("--encoder", "hrnet_w18_small"),
            "^timm's hrnet_w18_small: .* have no say in its last level$",
        ),
        (
            ("--encoder", "resnet50"),
            "network.safetensors cannot be read as weights of timm's resnet50: size mismatch",
        ),
        (("--weights", "/nowhere.pth"), "^/nowhere.pth is not a file"),
        (("--like", "/nowhere"), "^/nowhere is not a model folder"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_written(
    words: tuple[str, str],
    sentence: str,
    weights: Path,
    generator: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    all_words = {"--encoder": NAME, "--weights": weights, "--like": generator, **dict([words])}
    with pytest.raises(ColorganError, match=sentence):
        command(
            "import_encoder",
            *(word for pair in all_words.items() for word in pair),
            "--out",
            tmp_path / "e",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "encoder", "missing"),
    [
        (
            "convnextv2_atto",
            "convnext_atto",
            "gamma",
        ),  # scales of layers that start as one small number
        ("convnext_atto", "convnextv2_atto", "grn"),
        ("resnet10t", "resnet10t", "running_mean"),
    ],
)
def test_a_file_that_lacks_a_part_is_refused(
    file: str,
    encoder: str,
    missing: str,
    tmp_path: Path,
    generator: Path,
    command: Command,
    timm: Any,
) -> None:
    """Also where what is missing would start as a constant, which two random networks share."""
    state = {
        key: value
        for key, value in timm.create_model(file).state_dict().items()
        if "running" not in key
    }
    save_file(state, tmp_path / "file.safetensors")
    words = ("--encoder", encoder, "--weights", tmp_path / "file.safetensors", "--like", generator)
    with pytest.raises(ModelFolderError, match=f"holds no weights for .* for one [^ ]*{missing}"):
        command("import_encoder", *words, "--out", tmp_path / "e")


def test_inference_of_the_paper_is_refused(folder: Path, tmp_path: Path) -> None:
    """It would reach the decoder and not the encoder."""
    with pytest.raises(UsageError, match="reaches the U-Net's own layers, not"):
        initial_model(FinetuneRecipe(run=tmp_path, init=str(folder), inference="paper"), ("a",), ())


def test_a_hostile_file_is_not_executed(
    tmp_path: Path, generator: Path, command: Command, timm: Any
) -> None:
    """A pickle that would touch a file when read."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"conv1.weight": Touch()}, tmp_path / "bad.pth")
    with pytest.raises(ModelFolderError, match="blocked loading"):
        command(
            "import_encoder",
            "--encoder",
            NAME,
            "--weights",
            tmp_path / "bad.pth",
            "--like",
            generator,
            "--out",
            tmp_path / "e",
        )
    assert not (tmp_path / "touched").exists()


def test_a_folder_that_names_no_network_of_timm_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for encoder, sentence in (
        ("hf-hub:a/b", "knows no network"),
        ("unet", "kind encoder needs a network of timm"),
    ):
        config["architecture"]["encoder"] = encoder
        (tmp_path / CONFIG).write_text(json.dumps(config))
        (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
        with pytest.raises(ModelFolderError, match=sentence):
            load_model(tmp_path)
