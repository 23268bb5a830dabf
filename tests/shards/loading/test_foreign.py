"""Shards made elsewhere, used in place: our order, resume and fault rules; disk, http, S3, GCS."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from helpers.bucket_server import serve_bucket
from helpers.http_server import serve
from helpers.tiny_set import cut_in_the_pixels, jpeg, picture
from PIL import Image
from skimage.color import rgb2lab

from shards.errors import ManifestError
from shards.loading.loader import Batch, Loader
from shards.loading.shard_set import ShardSet, Storage, open_shards
from shards.manifest import read_manifest
from shards.order import Order, replacement
from shards.packing.indexing import index_shards
from shards.packing.verifying import verify
from shards.storage.retries import RetryPolicy

SIZE = 32
NUM_SAMPLES, PER_SHARD = 30, 8
CLASSES = 3
SETTINGS: dict[str, Any] = {
    "image_size": SIZE,
    "global_batch_size": 12,
    "micro_batch_size": 3,
    "seed": 7,
}
QUICK = RetryPolicy(
    num_tries=2,
    wait_s=0.01,
    stall_s=5.0,
    base_s=30.0,
)


def encoded(index: int, kind: str) -> bytes:
    rgb_HW3 = picture(index, SIZE, SIZE)
    if kind == "jpg":
        return jpeg(rgb_HW3)

    stream = io.BytesIO()
    options = {"png": {"format": "PNG"}, "webp": {"format": "WEBP", "lossless": True}}[kind]
    Image.fromarray(rgb_HW3).save(stream, **options)
    return stream.getvalue()


def kind_of(index: int) -> str:
    return ("jpg", "jpg", "png", "webp")[index % 4]


def webdataset_sample(index: int) -> dict[str, Any]:
    """Return a sample as imagenet-wds has it, with a key that has a dot."""
    kind = kind_of(index)
    return {
        "__key__": f"train/s{index:04d}",
        kind: encoded(index, kind),
        "cls": str(index % CLASSES),
        "json": json.dumps({"wnid": f"n{index % CLASSES:02d}"}).encode(),
    }


def img2dataset_sample(index: int) -> dict[str, Any]:
    """Return a sample as img2dataset writes it: jpg, a caption, facts of the download."""
    details = {
        "url": "https://host/x.jpg",
        "caption": "a photo",
        "status": "success",
        "width": SIZE,
    }

    return {
        "__key__": f"{index:09d}",
        "jpg": encoded(index, "jpg"),
        "txt": "a photo",
        "json": json.dumps(
            {
                **details,
                "key": f"{index:09d}",
            }
        ).encode(),
    }


def write_shards(folder: Path, sample_of: Any) -> Path:
    """Write shards with the webdataset library's own writer."""
    folder.mkdir()

    for shard, first in enumerate(range(0, NUM_SAMPLES, PER_SHARD)):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as writer:
            for index in range(first, min(first + PER_SHARD, NUM_SAMPLES)):
                sample = sample_of(index)
                encodable = {
                    name: value.encode() if isinstance(value, str) and name != "__key__" else value
                    for name, value in sample.items()
                }
                writer.write(encodable)

    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("made elsewhere") / "wds", webdataset_sample)


@pytest.fixture(scope="module")
def indexed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "set"
    index_shards(
        str(tars),
        out,
        label_format="cls",
        workers=0,
    )

    return out


def train(
    shards: ShardSet, images_seen: int, steps: int, world: int = 1, **settings: Any
) -> list[list[Batch]]:
    """Return the steps of a run on `world` ranks: all micro-batches of each step in order."""
    arguments = SETTINGS | settings
    loaders = [Loader(shards, rank=rank, world_size=world, **arguments) for rank in range(world)]
    ranks = [list(islice(loader.train_batches(images_seen), steps)) for loader in loaders]
    for loader in loaders:
        loader.close()
    return [[batch for rank in ranks for batch in rank[step]] for step in range(steps)]


def ids(steps: list[list[Batch]]) -> list[int]:
    return [index for step in steps for batch in step for index in batch.sample_ids_B.tolist()]


def pixels(steps: list[list[Batch]]) -> torch.Tensor:
    return torch.cat([batch.lab_B3HW for step in steps for batch in step])


def reference(index: int, kind: str) -> torch.Tensor:
    """Lab of a sample by Pillow and skimage."""
    rgb_HW3 = np.asarray(Image.open(io.BytesIO(encoded(index, kind))).convert("RGB"))
    lab = torch.from_numpy(rgb2lab(rgb_HW3)).permute(
        2,
        0,
        1,
    )

    return torch.stack(
        [
            lab[0] / 50 - 1,
            lab[1] / 128,
            lab[2] / 128,
        ]
    )


def announced(number: int) -> list[int]:
    sizes = [8, 8, 8, 6]

    return (
        Order(sizes, SETTINGS["seed"])
        .sample_ids(
            0,
            number,
        )
        .tolist()
    )


def test_every_format_comes_in_the_announced_order_with_its_class(indexed: Path) -> None:
    assert all(not check.faults for check in verify(indexed, workers=0))
    assert set(read_manifest(indexed).image_formats) == {"jpeg", "png", "webp"}

    steps = train(
        open_shards([indexed]),
        0,
        5,
        targets="classes",
    )
    assert ids(steps) == announced(60)
    for step in steps:
        for batch in step:
            assert batch.classes_BC is not None
            assert batch.difficult_BC is not None
            assert not batch.difficult_BC.any()
            classes = batch.classes_BC.argmax(1)
            assert torch.equal(classes, batch.sample_ids_B % CLASSES)
            assert batch.classes_BC.sum() == len(classes)

            for index, lab_3HW in zip(batch.sample_ids_B.tolist(), batch.lab_B3HW, strict=True):
                assert (lab_3HW - reference(index, kind_of(index))).abs().max() < 1e-5


def test_other_ranks_and_a_resume_see_the_same(indexed: Path) -> None:
    shards = open_shards([indexed])
    settings: dict[str, Any] = {"flip": True, "random_crop_min_area": 0.4}
    whole = train(shards, 0, 6, **settings)
    assert torch.equal(
        pixels(whole),
        pixels(train(shards, 0, 6, world=2, **settings)),
    )

    resumed = train(shards, 0, 2, world=2, **settings) + train(shards, 24, 4, world=4, **settings)
    assert ids(resumed) == ids(whole)
    assert torch.equal(pixels(resumed), pixels(whole))


def test_the_layout_of_img2dataset(tmp_path: Path) -> None:
    tars = write_shards(tmp_path / "laion", img2dataset_sample)
    (tars / "00000.parquet").write_bytes(b"PAR1")
    (tars / "00000_stats.json").write_text("{}")
    index_shards(
        str(tars),
        tmp_path / "index",
        workers=0,
    )

    steps = train(
        open_shards([tmp_path / "index"]),
        0,
        3,
    )
    assert ids(steps) == announced(36)
    for index, lab_3HW in zip(ids(steps), pixels(steps), strict=True):
        assert (lab_3HW - reference(index, "jpg")).abs().max() < 1e-5


def test_a_sample_damaged_after_indexing_is_replaced_by_the_rule(
    tars: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tars.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    index_shards(
        str(copy),
        tmp_path / "index",
        label_format="cls",
        workers=0,
    )

    shards = open_shards([tmp_path / "index"])
    row = shards.rows(np.array([11]))[0]
    path = shards.shard_paths[row["shard"]]
    data = bytearray(path.read_bytes())
    data[int(row["image_offset"]) + 100] ^= 1
    path.write_bytes(data)

    due = announced(60)
    seen = ids(train(shards, 0, 5, max_bad_share=0.5))
    for position, (planned, used) in enumerate(zip(due, seen, strict=True)):
        if planned != 11:
            assert used == planned
        else:
            epoch = position // NUM_SAMPLES
            assert used == replacement(
                SETTINGS["seed"],
                epoch,
                11,
                1,
                NUM_SAMPLES,
            )


def test_over_http_they_are_fetched_once_and_the_same(
    tars: Path, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(tars) as server:
        urls = f"{server.url}/{{00000..00003}}.tar"
        index_shards(
            urls,
            tmp_path / "index",
            label_format="cls",
            workers=0,
        )
        after_indexing = dict(server.requests)

        shards = open_shards(
            [tmp_path / "index"],
            Storage(tmp_path / "cache", 1.0, retry=QUICK),
        )
        steps = train(shards, 0, 5)
        requests = {name: server.requests[name] - after_indexing[name] for name in after_indexing}

    here = train(open_shards([indexed]), 0, 5)
    assert ids(steps) == ids(here)
    assert torch.equal(pixels(steps), pixels(here))
    assert set(requests.values()) == {1}

    # The server is gone; the cache serves the next run.
    shards = open_shards(
        [tmp_path / "index"],
        Storage(tmp_path / "cache", 1.0, retry=QUICK),
    )
    assert ids(train(shards, 0, 2)) == announced(24)


@pytest.fixture
def bucket(tars: Path) -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        environment.setenv(
            "AWS_ENDPOINT_URL",
            f"http://{host}:{port}",
        )
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # A file system that an earlier test has opened would still ask that test's server.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("elsewhere")
        files.put(
            str(tars) + "/",
            "elsewhere/wds/",
            recursive=True,
        )
        fsspec.filesystem("s3").clear_instance_cache()
        yield "s3://elsewhere/wds"

    server.stop()


def test_in_a_bucket_they_are_the_same(bucket: str, indexed: Path, tmp_path: Path) -> None:
    index_shards(
        f"{bucket}/{{00000..00003}}.tar",
        tmp_path / "index",
        workers=0,
    )
    shards = open_shards(
        [tmp_path / "index"],
        Storage(tmp_path / "cache", 1.0, retry=QUICK),
    )
    steps = train(shards, 0, 3)
    here = train(open_shards([indexed]), 0, 3)

    assert ids(steps) == ids(here)
    assert torch.equal(pixels(steps), pixels(here))


def test_in_a_bucket_of_google_they_are_indexed_verified_and_loaded(
    tars: Path, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcsfs = pytest.importorskip("gcsfs")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_bucket(tars) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        gcsfs.core.GCSFileSystem.clear_instance_cache()
        out = tmp_path / "index"
        index_shards(f"{server.url}/{{00000..00003}}.tar", out, label_format="cls", workers=0)
        checks = list(verify(out, workers=0))
        shards = open_shards([out], Storage(tmp_path / "cache", 1.0, retry=QUICK))
        steps = train(shards, 0, 3)

    assert len(checks) == 4
    assert all(check.is_good for check in checks)
    here = train(open_shards([indexed]), 0, 3)
    assert ids(steps) == ids(here)
    assert torch.equal(pixels(steps), pixels(here))


def test_they_are_staged_like_our_own(indexed: Path, tars: Path, tmp_path: Path) -> None:
    shards = open_shards(
        [indexed],
        Storage(stage_dir=tmp_path / "scratch"),
    )
    assert all(path.is_relative_to(tmp_path / "scratch") for path in shards.shard_paths)
    assert shards.digest == open_shards([indexed]).digest
    assert ids(train(shards, 0, 2)) == announced(24)


@pytest.mark.parametrize(
    ("targets", "message"),
    [("boxes", "have no boxes"), ("mask", "masks")],
)
def test_what_they_lack_is_refused(indexed: Path, targets: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Loader(open_shards([indexed]), **SETTINGS, targets=targets)  # type: ignore[arg-type]


def test_a_manifest_behind_a_url_cannot_name_local_files(
    indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    storage = Storage(tmp_path / "cache", 1.0, retry=QUICK)
    with serve(indexed) as server, pytest.raises(ManifestError, match="on the machine that"):
        open_shards([server.url], storage)


def test_cut_off_images_are_left_out_by_both(tmp_path: Path) -> None:
    """Indexing leaves them out; a set that promises one is a set with a bad sample."""

    def sample(index: int) -> dict[str, Any]:
        made = img2dataset_sample(index)
        if index == 4:
            made["jpg"] = cut_in_the_pixels(made["jpg"])
        return made

    tars = write_shards(tmp_path / "cut", sample)
    manifest = index_shards(
        str(tars),
        tmp_path / "index",
        workers=0,
    ).manifest
    assert (
        manifest.num_samples,
        manifest.num_rejected,
    ) == (NUM_SAMPLES - 1, 1)
