"""Models go to the hub and come back: only what a model is, and no folder of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import LAUNCHER
from helpers.http_server import serving
from helpers.hub_server import ModelHub

from colorgan import Encoder
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model, write_model

ARCHITECTURE = Architecture(
    image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.0
)
RECIPE = {
    "run": "/home/me/secret/runs/a",
    "data": {"train": ["/data/private/photos", "s3://bucket/key/more"], "flip": True},
    "images": 7,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        kind="generator", architecture=ARCHITECTURE, ab_scale=110.0, images_seen=7, recipe=RECIPE
    )
    folder = tmp_path / "generator"
    folder.mkdir()
    write_model(folder, build_model(config), config)
    (folder / "README.md").write_text("# A generator\n")
    (folder / "validation.png").write_bytes(b"a picture")
    (folder / "notes.txt").write_text("mine\n")
    return folder


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with serving(ModelHub()) as server:
        yield server


def push(
    endpoint: str, *words: object, token: str = "hf_secret"
) -> subprocess.CompletedProcess[str]:
    # The endpoint is read when the library is imported: a process of its own.
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token}
    return subprocess.run(
        [sys.executable, str(LAUNCHER / "push.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def test_a_model_comes_back_as_it_went(model: Path, hub: ModelHub, tmp_path: Path) -> None:
    done = push(hub.endpoint, "--model", model, "--repo", hub.name)
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/{hub.name}: uploaded, private" in done.stdout
    assert hub.created[0]["visibility"] == "private"
    assert set(hub.files) == {"config.json", "model.safetensors", "README.md", "validation.png"}
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()

    assert hub.files["README.md"] == b"# A generator\n"

    recipe = json.loads(hub.files["config.json"])["recipe"]
    assert recipe["run"] == "a"
    assert recipe["data"] == {"train": ["photos", "more"], "flip": True}

    # By its name, in a process that has only the hub.
    code = (
        "import sys, torch; from colorgan import Encoder; "
        "encoder = Encoder.from_pretrained(sys.argv[1], cache_dir=sys.argv[2]); "
        "torch.save(encoder(torch.full((1, 1, 32, 32), 0.5))[-1], sys.argv[3])"
    )
    features = tmp_path / "features.pt"
    subprocess.run(
        [sys.executable, "-c", code, hub.name, str(tmp_path / "cache"), str(features)],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(LAUNCHER.parent)},
        check=True,
        timeout=120,
    )
    expected = Encoder.from_pretrained(model)(torch.full((1, 1, 32, 32), 0.5))[-1]
    assert torch.equal(torch.load(features, weights_only=True), expected)


def test_mistakes_are_one_sentence_and_nothing_is_sent(
    model: Path, hub: ModelHub, tmp_path: Path
) -> None:
    wrong_token = push(hub.endpoint, "--model", model, "--repo", hub.name, token="hf_other")
    assert f"UsageError: {hub.name} was not uploaded to {hub.endpoint} (" in wrong_token.stderr

    no_hub = push("http://127.0.0.1:1", "--model", model, "--repo", hub.name)
    assert "check the network, and the token with `hf auth login` or HF_TOKEN" in no_hub.stderr

    no_name = push(hub.endpoint, "--model", model, "--repo", "landscapes")
    assert "--repo 'landscapes': a name on the hub is USER/NAME" in no_name.stderr

    (model / "README.md").unlink()
    no_card = push(hub.endpoint, "--model", model, "--repo", hub.name)
    assert f"ModelFolderError: {model} has no README.md" in no_card.stderr

    for done in (wrong_token, no_hub, no_name, no_card):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert not hub.files
