"""The Python examples of docs/python.md, each run in a folder as after the commands before them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import PROJECT
from helpers.networks import small_config
from PIL import Image

from colorgan.models.model_folder import build_model, write_model
from colorgan.models.modes import initialise
from shards.manifest import read_manifest

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (PROJECT / "docs" / "python.md").read_text(),
    re.DOTALL,
)
OTHERS = ("segmentation_models_pytorch", "torchvision", "mmdet")


@pytest.fixture(scope="module")
def folder(packed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a generator, three fine-tuned models, packed sets and a photo."""
    root = tmp_path_factory.mktemp("python")
    classes = read_manifest(packed["voc-val"]).classes
    kinds = {"classify": "classifier", "segment": "segmenter", "detect": "detector"}
    configs = {"pretrain/generator": small_config("generator")}
    for task, kind in kinds.items():
        configs[f"{task}/model"] = small_config(
            kind, len(classes) + (task == "segment"), classes=classes
        )

    for name, config in configs.items():
        model = build_model(config)
        initialise(model, 0)
        (root / "runs" / name).mkdir(parents=True)
        write_model(
            root / "runs" / name,
            model,
            config,
        )

    Image.new(
        "RGB",
        (61, 45),
        (90, 120, 150),
    ).save(root / "photo.jpg")
    (root / "shards").mkdir()
    for split in ("voc-train", "voc-val"):
        (root / "shards" / split).symlink_to(packed[split])
    return root


@pytest.fixture
def libraries() -> Iterator[None]:
    """Let the libraries be imported that lie in a folder of their own (see the Makefile)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(sys.prefix) / "encoders"))
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        try:
            import torchvision  # noqa: F401
        except ImportError:
            pass
        except RuntimeError:  # its wheel is of another torch
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")  # type: ignore[no-untyped-call]
        yield


def run(
    block: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    exec(
        compile(block, "docs/python.md", "exec"),
        names,
    )
    return names


def block_with(words: str) -> str:
    (block,) = [block for block in BLOCKS if words in block]
    return block


OWN = [block for block in BLOCKS if not any(other in block for other in OTHERS)]


@pytest.mark.parametrize(
    "block",
    OWN,
    ids=range(len(OWN)),
)
def test_the_examples_run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(block, folder, monkeypatch)
    if "colored_3HW" in names:
        assert names["colored_3HW"].shape == (3, 45, 61)
        assert [image.size for image in names["colored"]] == [(61, 45)] * 2
    if "mask" in names:
        assert names["mask"].index_HW.shape == (45, 61)
        assert len(names["boxes"]) == 2
    if "encoder" in names:
        assert names["encoder"].strides == (2, 4, 8, 16, 32)
        assert [level.shape[1:] for level in names["levels"]] == [
            (64 // stride, 64 // stride) for stride in names["encoder"].strides
        ]

    if "scores" in names:
        assert 0.0 <= names["scores"]["mAP"] <= 1.0


@pytest.mark.filterwarnings("ignore")
def test_segmentation_models_take_the_encoder(
    libraries: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    names = run(
        block_with("segmentation_models"),
        folder,
        monkeypatch,
    )

    assert names["masks_B21HW"].shape == (2, 21, 64, 96)
    names["masks_B21HW"].mean().backward()
    assert all(each.grad is not None for each in names["network"].parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_feature_pyramid_takes_the_encoder(
    libraries: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    names = run(block_with("torchvision"), folder, monkeypatch)
    shapes = {name: tuple(level.shape) for name, level in names["levels"].items()}

    assert shapes == {
        "1": (2, 256, 16, 24),
        "2": (2, 256, 8, 12),
        "3": (2, 256, 4, 6),
        "4": (2, 256, 2, 3),
        "pool": (2, 256, 1, 2),
    }


@pytest.mark.filterwarnings("ignore")
def test_mmdetection_takes_the_encoder(
    libraries: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmdet")
    names = run(block_with("mmdet"), folder, monkeypatch)
    backbone = names["ColorganBackbone"]("runs/pretrain/generator")
    levels = backbone(torch.rand(2, 3, 64, 96))

    assert [tuple(level.shape[2:]) for level in levels] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]
