"""What a network sees of a photo: training's windows, and the way back to the photo's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colorgan.models.framing import VOID, Fit, frame
from shards.order import fitted_windows

SIZES = [(40, 60), (61, 40), (7, 100), (33, 33), (100, 3)]
FITS: tuple[Fit, ...] = ("squash", "crop", "pad")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_windows_are_those_of_training(size: tuple[int, int], fit: Fit) -> None:
    window = fitted_windows(np.array([[0, 0, *size]], np.int32), fit)[0].tolist()
    found = frame(*size, fit)
    assert [found.top, found.left, found.height, found.width] == window


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_what_was_cut_comes_back_to_its_place(size: tuple[int, int], fit: Fit) -> None:
    photo = torch.randint(0, 250, (3, *size), dtype=torch.uint8)
    found = frame(*size, fit)
    window = found.cut(photo)
    assert window.shape[1:] == (found.height, found.width)
    back = found.mask_on_photo(window[0])
    seen = back != VOID
    assert torch.equal(back[seen], photo[0][seen])
    assert int(seen.sum()) == (min(size) ** 2 if fit == "crop" else size[0] * size[1])
    if fit == "pad":
        assert (window == 119).sum() >= window.numel() - photo.numel()


def test_boxes_come_back_in_pixels() -> None:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert frame(40, 60, "squash").boxes_on_photo(whole).tolist() == [[0, 0, 60, 40]]
    assert frame(40, 60, "crop").boxes_on_photo(whole).tolist() == [[10, 0, 50, 40]]
    assert frame(40, 60, "pad").boxes_on_photo(whole).tolist() == [[0, 0, 60, 40]]
    middle = torch.tensor([[0.25, 0.5, 0.75, 0.75]])
    assert frame(40, 60, "pad").boxes_on_photo(middle).tolist() == [[15, 20, 45, 35]]
