"""Pictures that are not square: squashed, cropped to the square in the middle, or padded."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_set import tiny_sample, write_set
from hypothesis import given
from hypothesis import strategies as st

from shards.loading.loader import Batch, Loader
from shards.loading.shard_set import open_shards
from shards.order import MAX_PADDED, fitted_windows

SIZE = 32


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_windows_are_squares_around_the_middle(top: int, left: int, height: int, width: int):
    given_14 = np.array(
        [[top, left, height, width]],
        np.int32,
    )
    assert (fitted_windows(given_14, "squash") == given_14).all()

    y, x, h, w = fitted_windows(given_14, "crop")[0].tolist()
    assert h == w == min(height, width)
    assert top <= y
    assert y + h <= top + height
    assert left <= x
    assert x + w <= left + width
    assert abs((2 * y + h) - (2 * top + height)) <= 1
    assert abs((2 * x + w) - (2 * left + width)) <= 1

    y, x, h, w = fitted_windows(given_14, "pad")[0].tolist()
    assert y <= top
    assert x <= left
    assert y + h >= top + height
    assert x + w >= left + width
    assert abs((2 * y + h) - (2 * top + height)) <= 1
    assert abs((2 * x + w) - (2 * left + width)) <= 1
    assert h * w <= MAX_PADDED * height * width
    if max(height, width) <= MAX_PADDED * min(height, width):
        assert h == w == max(height, width)


def loaded(folder: Path, **settings: object) -> Batch:
    loader = Loader(
        open_shards([folder]),
        image_size=SIZE,
        global_batch_size=8,
        micro_batch_size=8,
        targets="mask",
        **settings,  # type: ignore[arg-type]
    )
    batch = next(iter(loader.eval_batches()))
    loader.close()

    return batch


@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 64), (64, 32)],
)
def test_padding_is_void_and_the_picture_keeps_its_shape(
    tmp_path: Path, height: int, width: int
) -> None:
    samples = [tiny_sample(index, height, width) for index in range(8)]
    batch = loaded(
        write_set(
            tmp_path / "set",
            samples,
            policy="original",
        ),
        fit="pad",
    )
    assert batch.mask_BHW is not None
    assert batch.inside_BHW is not None
    assert batch.stored_masks is not None

    inside_HW = torch.zeros(
        SIZE,
        SIZE,
        dtype=torch.bool,
    )
    part = slice(SIZE // 4, 3 * SIZE // 4)
    inside_HW[part if width > height else slice(None), part if height > width else slice(None)] = 1
    assert (batch.inside_BHW == inside_HW).all()
    assert (batch.mask_BHW[:, ~inside_HW] == 255).all()
    # The resize blends the row or column beside the picture.
    lab_B3HW = batch.lab_B3HW if width > height else batch.lab_B3HW.transpose(2, 3)
    assert lab_B3HW[:, :, : SIZE // 4 - 1].abs().max() < 0.01

    # At its own size the mask lies in a square as large as the longer side.
    for stored_HW, sample in zip(batch.stored_masks, samples, strict=True):
        assert stored_HW.shape == (64, 64)
        inside = stored_HW[16:48] if width > height else stored_HW[:, 16:48]
        labelled = int((stored_HW != 255).sum())
        assert labelled == int((inside != 255).sum()) == height * width // 2, sample


def test_a_crop_shows_the_middle_of_picture_and_mask(tmp_path: Path) -> None:
    samples = [tiny_sample(index, 32, 96) for index in range(8)]
    folder = write_set(
        tmp_path / "set",
        samples,
        policy="original",
    )
    cropped = loaded(folder, fit="crop")
    whole = loaded(folder)
    assert cropped.inside_BHW is None
    assert cropped.stored_masks is not None
    assert [mask.shape for mask in cropped.stored_masks] == [(32, 32)] * 8

    # 32 x 32 out of 32 x 96: the resize changes nothing, and squashing shrinks to a third.
    third = torch.nn.functional.avg_pool2d(cropped.lab_B3HW, (1, 3), ceil_mode=True)[..., 1:10]
    middle = whole.lab_B3HW[..., 11:20]
    assert not torch.allclose(cropped.lab_B3HW, whole.lab_B3HW, atol=0.05)
    assert (third.mean((2, 3)) - middle.mean((2, 3))).abs().max() < 0.1
    assert cropped.mask_BHW is not None
    assert whole.mask_BHW is not None
    assert (cropped.mask_BHW == whole.mask_BHW).all()  # the same in each column


def test_training_draws_the_same_squares_again(tmp_path: Path) -> None:
    samples = [tiny_sample(index, 32, 64) for index in range(16)]
    folder = write_set(
        tmp_path / "set",
        samples,
        policy="original",
    )
    runs = []
    for _ in range(2):
        loader = Loader(
            open_shards([folder]),
            image_size=SIZE,
            global_batch_size=8,
            micro_batch_size=8,
            fit="pad",
            random_crop_min_area=0.3,
            flip=True,
        )
        batches = loader.train_batches(0)
        runs.append(torch.cat([next(batches)[0].lab_B3HW for _ in range(4)]))
        loader.close()

    assert torch.equal(*runs)
    # Crops of other shapes are padded by other amounts.
    grey = [int((lab_3HW.abs().amax(0) < 0.01).sum()) for lab_3HW in runs[0]]

    assert any(first != second for first, second in pairwise(grey))
