"""The loader on what the packer writes: every policy, odd pictures, EXIF turns, masks and boxes."""

import io
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_corpus import NUM_GOOD, draw_corpus
from PIL import Image
from skimage.color import rgb2lab

from shards.loading.loader import Loader
from shards.loading.members import MemberSpec, read_members
from shards.loading.shard_set import ShardSet, open_shards
from shards.packing.pack import pack
from shards.storage.shard_files import ShardFiles
from shards.storage.tar_reader import BLOCK

SETTINGS: dict[str, Any] = {"global_batch_size": 12, "micro_batch_size": 6, "max_bad_share": 0.0}


@pytest.fixture(scope="module", params=["squash:24", "short:20", "original"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    raw = tmp_path_factory.mktemp("raw")
    out = tmp_path_factory.mktemp("packed")
    pack(
        draw_corpus(raw), out, root=raw, image_policy=request.param, samples_per_shard=7, workers=0
    )
    return open_shards([out])


def test_training_and_evaluation_take_every_sample(shards: ShardSet) -> None:
    loader = Loader(
        shards, image_size=24, targets="mask", flip=True, random_crop_min_area=0.5, **SETTINGS
    )
    seen = [
        i
        for step in islice(loader.train_batches(0), 5)
        for batch in step
        for i in batch.sample_ids_B.tolist()
    ]

    assert sorted(seen[:NUM_GOOD]) == list(range(NUM_GOOD)) == sorted(seen[NUM_GOOD:])
    assert not loader.replaced

    loader.close()


def test_pictures_are_those_that_were_packed(shards: ShardSet) -> None:
    """Those of the training size are compared pixel by pixel, in Lab, with PIL and skimage."""
    files = ShardFiles()
    loader = Loader(shards, image_size=24, targets="mask", **SETTINGS)
    same_size = 0
    for batch in loader.eval_batches():
        assert batch.mask_BHW is not None
        rows = shards.rows(batch.sample_ids_B.numpy())
        for row, lab_3HW, mask_HW in zip(rows, batch.lab_B3HW, batch.mask_BHW, strict=True):
            assert set(mask_HW.unique().tolist()) <= {0, 1, 2, 255}
            if (row["width"], row["height"]) == (24, 24):
                members = read_members(
                    shards,
                    row,
                    MemberSpec(mask=True),
                    files.read_at,
                )
                assert members.mask is not None
                lab = torch.from_numpy(
                    rgb2lab(np.asarray(Image.open(io.BytesIO(members.image)).convert("RGB")))
                )
                planes = torch.stack(
                    [
                        lab[..., 0] / 50 - 1,
                        lab[..., 1] / 128,
                        lab[..., 2] / 128,
                    ]
                )
                assert (planes - lab_3HW).abs().max() < 1e-5
                assert np.array_equal(
                    np.asarray(Image.open(io.BytesIO(members.mask))), mask_HW.numpy()
                )
                same_size += 1

    assert same_size == NUM_GOOD or shards.image_policies != ("squash:24",)

    loader.close()
    files.close()


def test_labels(shards: ShardSet) -> None:
    loader = Loader(shards, image_size=24, targets="classes", **SETTINGS)
    for batch in loader.eval_batches():
        assert batch.classes_BC is not None
        assert batch.difficult_BC is not None
        assert batch.classes_BC.tolist() == [[1.0, 0.0]] * len(batch.sample_ids_B)
        assert not batch.difficult_BC.any()
    loader.close()


def test_a_sample_is_one_seek_whatever_is_read_of_it(shards: ShardSet) -> None:
    """Image, label and mask are read in turn, with only tar headers and padding between."""
    files = ShardFiles()
    spans: list[tuple[int, int]] = []

    def read_at(path: Path, offset: int, size: int) -> bytes:
        spans.append((offset, offset + size))
        return files.read_at(path, offset, size)

    for row in shards.rows(np.arange(NUM_GOOD)):
        spans.clear()
        read_members(
            shards,
            row,
            MemberSpec(classes=("a", "b"), mask=True),
            read_at,
        )
        gaps = [begin - end for (_, end), (begin, _) in pairwise(spans)]
        assert len(gaps) == 2
        assert all(BLOCK <= gap < 2 * BLOCK for gap in gaps)
    files.close()


REAL = Path(__file__).parents[3] / "../shared/data/VOCdevkit"


@pytest.mark.skipif(
    not REAL.is_dir(),
    reason="the real pictures of ../shared/data are not here",
)
def test_real_pictures(tmp_path: Path) -> None:
    """Photos as they are: the graph and the fused kernels beside skimage on PIL's pixels."""
    from shards.records import Corpus, Record

    paths = sorted((REAL / "VOC2012/JPEGImages").glob("*.jpg"))[:24]

    def records() -> Any:
        return iter([Record(path.stem, path, {"classes": [], "objects": []}) for path in paths])

    pack(
        Corpus("real", "all", (), (), 24, records),
        tmp_path / "out",
        root=REAL,
        image_policy="original",
        workers=0,
    )
    shards = open_shards([tmp_path / "out"])
    ways: list[Any] = ["fused", "operators"]
    fused, operators = (
        torch.cat(
            [
                batch.lab_B3HW
                for batch in Loader(shards, image_size=64, lab=lab, **SETTINGS).eval_batches()
            ]
        )
        for lab in ways
    )
    assert (fused - operators).abs().mean() < 1e-4
    assert (fused - operators).abs().max() < 0.06  # a byte's step in a dark colour
    photo = (
        Image.open(paths[0])
        .convert("RGB")
        .resize(
            (64, 64),
            Image.Resampling.BILINEAR,
        )
    )
    lab = torch.from_numpy(rgb2lab(np.asarray(photo)))
    assert (fused[0, 0] - (lab[..., 0] / 50 - 1)).abs().mean() < 0.01
    assert (fused[0, 1] - lab[..., 1] / 128).abs().mean() < 0.01
