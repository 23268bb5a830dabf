"""Features of photos and packed sets: the encoder's own, the same on two ranks, resumed, kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import LAUNCHER, Command, command_line
from helpers.networks import small_config
from numpy.typing import NDArray
from PIL import Image

from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.models.colorizing import PhotoRows, luminance_square
from colorgan.models.model_folder import build_model, load_model, save_model
from colorgan.models.modes import initialise
from colorgan.models.photo_input import as_photo
from colorgan.probes.features import pooled
from colorgan.tasks.embedding import Embedder, Embedding, embed_photos
from shards.images.policy import MAX_PIXELS

NAMES = [f"{index:02d}.png" for index in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config("generator")
    network = build_model(config)
    initialise(network, 0)
    folder = tmp_path_factory.mktemp("embed") / "generator"
    save_model(folder, network, config)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        pixels = random.integers(0, 256, (30 + index, 40 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def rows_of(out: Path) -> tuple[list[str], NDArray[np.float32]]:
    parts = sorted(out.glob("part-*.npy"))
    keys = [json.loads(part.with_suffix(".json").read_text())["keys"] for part in parts]
    return [key for each in keys for key in each], np.concatenate([np.load(p) for p in parts])


def level_of(model: Path, photo: Path, level: int) -> torch.Tensor:
    network, _ = load_model(model)
    with Image.open(photo) as image:
        luminance = luminance_square(PhotoRows.of(as_photo(image)), 32)
    with torch.no_grad():
        features: torch.Tensor = network.encoder(luminance)[level]
    return features


@pytest.mark.parametrize("pool", ["mean", "grid", "none"])
def test_rows_are_the_encoder_s_levels(
    command: Command, model: Path, photos: Path, tmp_path: Path, pool: str
) -> None:
    words: list[Any] = ["--model", model, "--level", 3, "--pool", pool, "--part_images", 3]
    command("embed", *words, "--out", tmp_path, photos)
    keys, rows = rows_of(tmp_path)
    assert [Path(key).name for key in keys] == NAMES
    level_1CHW = level_of(model, photos / NAMES[4], 2)
    expected = {"mean": level_1CHW.mean((2, 3)), "grid": pooled(level_1CHW), "none": level_1CHW}
    np.testing.assert_allclose(rows[4], expected[pool][0].numpy(), rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "embeddings.json").read_text())["rows"] == 7


def test_the_deepest_level_of_a_packed_set(
    command: Command, model: Path, packed: dict[str, Path], tmp_path: Path
) -> None:
    command("embed", "--model", model, "--out", tmp_path, packed["voc-val"])
    keys, rows = rows_of(tmp_path)
    assert rows.shape == (12, 32)
    assert len(set(keys)) == 12


def test_two_ranks_write_the_files_of_one(model: Path, photos: Path, tmp_path: Path) -> None:
    files = []
    for num_ranks in (1, 2):
        out = tmp_path / str(num_ranks)
        words = ["--model", model, "--out", out, "--part_images", 2, "--device", "cpu", photos]
        profile = LAUNCHER / "configs/accelerate/ddp_cpu.yaml"
        launch = ["accelerate", "launch", "--config_file", profile, "--num_processes", num_ranks]
        done = command_line(*launch, LAUNCHER / "embed.py", *words)
        assert done.returncode == 0, done.stderr
        files.append({path.name: path.read_bytes() for path in sorted(out.glob("[pe]*"))})
    assert len(files[0]) == 9
    assert files[0] == files[1]


def test_parts_that_are_there_are_not_made_again(
    command: Command, model: Path, photos: Path, tmp_path: Path
) -> None:
    words: list[Any] = ["--model", model, "--out", tmp_path, "--part_images", 3, photos]
    command("embed", *words)
    keys, rows = rows_of(tmp_path)
    kept = (tmp_path / "part-00000.npy").stat().st_mtime_ns
    # As after a kill between a part and its keys.
    (tmp_path / "part-00001.json").unlink()
    command("embed", *words)
    assert rows_of(tmp_path)[0] == keys
    assert np.array_equal(rows_of(tmp_path)[1], rows)
    assert (tmp_path / "part-00000.npy").stat().st_mtime_ns == kept


def test_a_part_with_a_replaced_photo_is_made_again(
    command: Command, model: Path, photos: Path, tmp_path: Path
) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    # Its bytes are no UTF-8; the last one, so that the order of the others stays.
    (own / NAMES[6]).rename(own / os.fsdecode(b"caf\xe9.png"))
    words: list[Any] = ["--model", model, "--out", tmp_path / "out", "--part_images", 3, own]
    command("embed", *words)
    keys, rows = rows_of(tmp_path / "out")
    assert os.fsencode(keys[6]).endswith(b"caf\xe9.png")

    Image.new("RGB", (20, 20), (250, 10, 10)).save(own / NAMES[4])
    command("embed", *words)
    again, other = rows_of(tmp_path / "out")
    assert again == keys
    changed = np.flatnonzero((rows != other).any(axis=1))
    assert changed.tolist() == [4]


def test_other_features_are_kept(
    command: Command, model: Path, photos: Path, tmp_path: Path
) -> None:
    command("embed", "--model", model, "--out", tmp_path, photos)
    words: list[Any] = ["--model", model, "--out", tmp_path, "--level", 1, photos]
    with pytest.raises(UsageError, match="holds features of other photos or settings"):
        command("embed", *words)
    command("embed", *words, "--overwrite", "true")
    assert rows_of(tmp_path)[1].shape == (7, 4)
    with pytest.raises(UsageError, match="has the levels 1 to 5"):
        command("embed", "--model", model, "--out", tmp_path, "--level", 6, photos)


def test_bad_photos_have_no_row_and_are_named(
    command: Command, model: Path, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    words: list[Any] = ["--model", model, "--out", out, broken, photos]
    with pytest.raises(UsageError, match=r"(?s)1 of 8 photos .* no row:.*broken"):
        command("embed", *words)
    assert len(rows_of(out)[0]) == 7


def test_parquet_has_keys_and_rows(
    command: Command, model: Path, photos: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words: list[Any] = ["--model", model, "--out", tmp_path, "--format", "parquet", photos]
    command("embed", *words)
    table = parquet.read_table(tmp_path / "part-00000.parquet")
    assert [Path(key).name for key in table["key"].to_pylist()] == NAMES
    rows = np.array(table["features"].to_pylist(), np.float32)
    expected = level_of(model, photos / NAMES[0], -1).mean((2, 3))[0].numpy()
    np.testing.assert_allclose(rows[0], expected, rtol=1e-4, atol=1e-6)


# Parts of 3 photos end with an incomplete batch, right before the first one of the next part.
@pytest.mark.parametrize("part_images", [3, 1024])
def test_ranks_meet_after_every_batch(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part_images: int,
) -> None:
    """A rank waits for the others for one batch at most: a long part is no silence."""
    events: list[str] = []
    gather, features = Ranks.gather, Embedder.features

    def met(self: Ranks, value: Any) -> Any:
        events.append("meet")
        return gather(self, value)

    def computed(self: Embedder, squares: Any) -> torch.Tensor:
        events.append("batch")
        return features(self, squares)

    monkeypatch.setattr(Ranks, "gather", met)
    monkeypatch.setattr(Embedder, "features", computed)
    embedding = Embedding(tmp_path / "out", 0, "mean", "npy", 2, part_images, MAX_PIXELS)
    embed_photos(model, [photos], embedding, Ranks.single())

    assert events.count("batch") == {3: 5, 1024: 4}[part_images]
    assert ["batch", "batch"] not in [events[at : at + 2] for at in range(len(events))]
    assert len(rows_of(tmp_path / "out")[0]) == len(NAMES)
