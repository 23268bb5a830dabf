"""The generator folder with one call, from disk and from a hub; written back; as ONNX."""

from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import ModelHubMixin
from safetensors.torch import load_file, save_file

from colorgan.errors import ModelFolderError
from colorgan.models.generator import Generator, check_onnx, export_onnx
from colorgan.models.model_config import CONFIG, WEIGHTS, Architecture, ModelConfig
from colorgan.models.model_folder import build_model, load_model
from colorgan.models.modes import initialise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator")
    architecture = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.5
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=110.0, images_seen=7)
    module = build_model(config)
    initialise(module, 3)

    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.mul_(1e-3)  # so that the output is not all near 0

    save_file(
        module.state_dict(),
        out / WEIGHTS,
    )
    (out / CONFIG).write_text(config.model_dump_json())
    return out


def test_one_call_loads_and_one_colors(folder: Path) -> None:
    generator = Generator.from_pretrained(folder)
    luminance = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(
            generator(luminance),
            load_model(folder)[0](luminance),
        )

    assert not generator.training
    photo = torch.randint(
        0,
        256,
        (3, 45, 61),
        dtype=torch.uint8,
    )
    colored = generator.color(photo)

    assert colored.shape == (3, 45, 61)
    assert 0 <= float(colored.min()) <= float(colored.max()) <= 1


def test_what_is_saved_is_a_folder_of_ours(folder: Path, tmp_path: Path) -> None:
    Generator.from_pretrained(str(folder)).save_pretrained(tmp_path / "g")
    ours = load_file(folder / WEIGHTS)
    theirs = load_file(tmp_path / "g" / WEIGHTS)

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert load_model(tmp_path / "g", "generator")[1] == load_model(folder)[1]
    assert "library_name: colorgan" in (tmp_path / "g" / "README.md").read_text()
    assert Generator.push_to_hub is ModelHubMixin.push_to_hub


def test_a_name_on_the_hub_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, object]] = []

    def download(repo_id: str, filename: str, *, revision: str | None = None) -> str:
        asked.append((repo_id, filename, revision))
        return str(folder / filename)

    monkeypatch.setattr("colorgan.models.pretrained.hf_hub_download", download)
    generator = Generator.from_pretrained("someone/colours", revision="v1")
    assert generator.model_config.images_seen == 7
    assert asked == [
        ("someone/colours", CONFIG, "v1"),
        ("someone/colours", WEIGHTS, "v1"),
    ]


def test_a_download_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: str, **__: object) -> str:
        raise httpx2.RemoteProtocolError("peer closed connection")

    monkeypatch.setattr("colorgan.models.pretrained.hf_hub_download", download)
    with pytest.raises(ModelFolderError, match=r"could be fetched .*peer closed connection"):
        Generator.from_pretrained("someone/colours")


def test_other_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="takes no trust_remote_code"):
        Generator.from_pretrained(folder, trust_remote_code=True)


def test_onnx_gives_the_same_colors(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export_onnx(folder, tmp_path / "model.onnx")

    assert check_onnx(tmp_path / "model.onnx", folder) < 1e-4
    other = tmp_path / "other"
    other.mkdir()
    (other / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    changed = load_file(folder / WEIGHTS)
    changed["decoder.output.bias"] += 0.5
    save_file(changed, other / WEIGHTS)

    with pytest.raises(ModelFolderError, match="onnxruntime's output differs by"):
        check_onnx(tmp_path / "model.onnx", other)
