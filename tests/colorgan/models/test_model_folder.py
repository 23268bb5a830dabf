"""Model folders: from a checkpoint, loaded, and refused with nothing executed."""

import json
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.toy import ToyLoader, toy_recipe
from safetensors.torch import load_file, save_file
from torch import Tensor

from colorgan.checkpoints.checkpoint import Checkpoint, open_checkpoint
from colorgan.checkpoints.consolidation import consolidate, streamed_probe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ColorganError, ModelFolderError
from colorgan.models.model_config import CONFIG, WEIGHTS, read_config
from colorgan.models.model_folder import load_model, probe
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a checkpoint of three steps, with a weight average."""
    folder = tmp_path_factory.mktemp("run")
    recipe = toy_recipe(folder, ema_half_life_images=20, images=24)
    pretrain(
        recipe,
        ONE,
        total_images=24,
        data_digest="abc",
        train=ToyLoader(8, 8),
        val=None,
    )

    return open_checkpoint(folder / "checkpoints" / "images-000000000024")


@pytest.fixture(scope="module")
def generator(saved: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "generator"
    consolidate(saved, out)
    return out


@pytest.mark.parametrize(
    ("weights", "role"),
    [
        ("raw", "generator"),
        ("average", "generator_average"),
    ],
)
def test_the_folder_holds_the_checkpoints_tensors(
    saved: Checkpoint, tmp_path: Path, weights: Any, role: str
) -> None:
    config = consolidate(saved, tmp_path / "g", weights)

    assert config.weights == weights
    assert config.images_seen == 24
    assert config.data_digest == "abc"

    written = load_file(tmp_path / "g" / WEIGHTS)
    expected = saved.tensors(role)
    assert written.keys() == expected.keys()

    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype  # int64 counters among them
        assert torch.equal(written[name], tensor), name

    assert any(tensor.dtype == torch.int64 for tensor in written.values())


def test_the_layerwise_probe_equals_the_whole_network(generator: Path) -> None:
    module, config = load_model(generator, "generator")
    whole = probe(
        module,
        config.architecture.image_size,
        torch.device("cpu"),
    )

    assert torch.allclose(
        streamed_probe(generator / WEIGHTS, config),
        whole,
        atol=1e-5,
    )
    assert whole.std() > 1e-4


def resaved(saved: Checkpoint, folder: Path, change: Any) -> Checkpoint:
    """Return the same checkpoint with its tensors changed."""
    roles = {
        role: {name: change(role, name, t) for name, t in saved.tensors(role).items()}
        for role in saved.roles()
    }

    return open_checkpoint(
        save_checkpoint(
            folder,
            ranks=ONE,
            roles=roles,
            state=saved.state,
            keep_last=1,
        )
    )


def test_bfloat16_weights_stay_bfloat16(saved: Checkpoint, tmp_path: Path) -> None:
    def change(role: str, name: str, tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if role == "generator" and tensor.is_floating_point() else tensor

    consolidate(
        resaved(saved, tmp_path / "c", change),
        tmp_path / "g",
        "raw",
    )
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "g" / WEIGHTS).values()}
    assert kinds == {torch.bfloat16, torch.int64}
    module, _ = load_model(tmp_path / "g")
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_other_weights_than_the_run_saw_are_refused(saved: Checkpoint, tmp_path: Path) -> None:
    def change(role: str, name: str, tensor: Tensor) -> Tensor:
        return tensor + 0.5 if (role, name) == ("generator", "decoder.output.bias") else tensor

    with pytest.raises(ModelFolderError, match="output differs by"):
        consolidate(
            resaved(saved, tmp_path / "c", change),
            tmp_path / "g",
            "raw",
        )
    assert not (tmp_path / "g").exists()


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("bomb-went-off").touch, ())


def copy_of(generator: Path, out: Path) -> Path:
    out.mkdir()
    for name in (WEIGHTS, CONFIG):
        (out / name).write_bytes((generator / name).read_bytes())
    return out


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_pickle_is_refused_unopened(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy_of(generator, tmp_path / "g")
    (folder / name).write_bytes(pickle.dumps(_Bomb()))

    with pytest.raises(ModelFolderError):
        load_model(folder)
    torch.save(
        {"x": _Bomb()},
        folder / name,
    )

    with pytest.raises(ModelFolderError):
        load_model(folder)
    assert not (tmp_path / "bomb-went-off").exists()


def weights_bytes(
    header: dict[str, Any] | bytes,
    data: bytes = b"",
    length: int | None = None,
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(
    shape: list[int],
    *,
    dtype: str = "F32",
    end: int = 4,
) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [0, end],
    }


HUGE = 1 << 50
HOSTILE = {
    "nothing": b"",
    "short": b"\x08\0\0\0",
    "huge header": weights_bytes(b"{}", length=HUGE),
    "header of the largest number": weights_bytes(b"{}", length=2**64 - 1),
    "no JSON": weights_bytes(b"\xff\xfe{{"),
    "a list": weights_bytes(b"[]"),
    "deep": weights_bytes(b'{"a":' * 30_000 + b"1" + b"}" * 30_000),
    "huge tensor": weights_bytes({"a": entry([HUGE], end=4 * HUGE)}),
    "overflowing shape": weights_bytes({"a": entry([2**62, 16], end=0)}),
    "negative": weights_bytes(
        {"a": entry([-1])},
        b"abcd",
    ),
    "overlap": weights_bytes(
        {
            "a": entry([1]),
            "b": entry([1]),
        },
        b"abcd",
    ),
    "data that nothing names": weights_bytes({}, b"abcd"),
    "unknown kind of number": weights_bytes(
        {"a": entry([1], dtype="OBJ")},
        b"abcd",
    ),
    "a name like a path": weights_bytes({"../../a": entry([1])}, b"abcd"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_one_sentence(generator: Path, tmp_path: Path, kind: str) -> None:
    folder = copy_of(generator, tmp_path / "g")
    (folder / WEIGHTS).write_bytes(HOSTILE[kind])
    with pytest.raises(ModelFolderError) as caught:
        load_model(folder)
    assert str(folder / WEIGHTS) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_sizes_that_the_file_does_not_hold_cost_no_memory(generator: Path, tmp_path: Path) -> None:
    folder = copy_of(generator, tmp_path / "g")
    config = json.loads((folder / CONFIG).read_text())
    config["architecture"] |= {"width": 1024, "image_size": 512}  # 57 GB of weights
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=r"does not fit config\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "../generator"},
        {"architecture": {"image_size": 10**9}},
        {"format_version": 2},
        {"ab_scale": "NaN"},
        {"auto_map": "evil.py"},
    ],
)
def test_a_config_of_another_kind_is_refused(
    generator: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = copy_of(generator, tmp_path / "g")
    (folder / CONFIG).write_text(
        json.dumps(
            {
                **json.loads((folder / CONFIG).read_text()),
                **change,
            }
        )
    )

    with pytest.raises(ModelFolderError):
        read_config(folder)


def test_a_tensor_too_many_or_too_few_is_named(generator: Path, tmp_path: Path) -> None:
    tensors = load_file(generator / WEIGHTS)
    folder = copy_of(generator, tmp_path / "g")
    save_file(
        {**tensors, "decoder.more": torch.ones(1)},
        folder / WEIGHTS,
    )

    with pytest.raises(ModelFolderError, match=r"config.json has no decoder\.more"):
        load_model(folder)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "decoder.output.bias"},
        folder / WEIGHTS,
    )

    with pytest.raises(ModelFolderError, match=r"the file has no decoder\.output\.bias"):
        load_model(folder)


def test_the_wrong_kind_is_refused(generator: Path) -> None:
    with pytest.raises(ColorganError, match="holds a generator, a segmenter is needed"):
        load_model(generator, "segmenter")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kind": "classifier", "classes": ["a", "b", "c"]}, "3 classes has 3 outputs, not 2"),
        ({"kind": "segmenter", "classes": ["a", "b"]}, "2 classes has 3 outputs, not 2"),
        ({"ab_scale": math.inf}, "ab_scale"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    generator: Path, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    other = copy_of(generator, tmp_path / "g")
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelFolderError, match=reason):
        load_model(other)


def test_a_folder_of_something_else_is_not_replaced(
    saved: Checkpoint, generator: Path, tmp_path: Path
) -> None:
    other = copy_of(generator, tmp_path / "g")
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps({**config, "kind": "segmenter", "classes": ["one"]}))
    before = (other / WEIGHTS).read_bytes()
    with pytest.raises(ModelFolderError, match="holds a segmenter and is not replaced by a gen"):
        consolidate(saved, other)
    assert (other / WEIGHTS).read_bytes() == before

    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("mine")
    with pytest.raises(ModelFolderError, match="holds other files than a model's"):
        consolidate(saved, notes)
    assert [path.name for path in notes.iterdir()] == ["thesis.txt"]


def test_an_older_model_is_replaced_at_once_with_what_was_made_of_it(
    saved: Checkpoint, generator: Path, tmp_path: Path
) -> None:
    folder = copy_of(generator, tmp_path / "g")
    (folder / "model.onnx").write_bytes(b"of the older weights")
    (folder / "README.md").write_text("a model card")
    inode = folder.stat().st_ino
    consolidate(saved, folder, "raw")

    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, "README.md"}
    assert folder.stat().st_ino != inode
    assert read_config(folder).weights == "raw"
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
