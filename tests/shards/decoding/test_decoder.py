"""The decoder: Lab by both ways against skimage, picture and mask kept together, damage found."""

import io

import numpy as np
import pytest
import torch
from helpers.tiny_set import cut_in_the_pixels, jpeg, picture, png
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

from shards.decoding.decoder import GPU_FAULT, DecodeError, Decoder, EncodedBatch
from shards.decoding.spec import DecodeSpec


def run(spec: DecodeSpec, batch: EncodedBatch, num_threads: int = 1, device: str = "cpu"):
    decoder = Decoder(spec, len(batch.images), num_threads, device)
    try:
        images = decoder.convert(decoder.decode(batch))
        return images.lab_B3HW, images.mask_BHW
    finally:
        decoder.close()


def encoded(images: list[bytes], masks: list[bytes] | None = None, **arrays) -> EncodedBatch:
    number = len(images)

    return EncodedBatch(
        images,
        np.array(
            arrays.get("windows", np.zeros((number, 4))),
            np.int32,
        ),
        np.array(
            arrays.get("flips", np.zeros(number)),
            np.int32,
        ),
        masks or (),
    )


def decoded_by_pil(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def reference(rgb_HW3: NDArray[np.uint8]) -> torch.Tensor:
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


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("lab", ["fused", "operators"])
def test_lab_equals_skimage(lab: str, num_threads: int) -> None:
    """Every grey, and noise at all colours; half of them mirrored."""
    noise = np.random.default_rng(0).integers(
        0,
        256,
        (64, 64, 3),
        dtype=np.uint8,
    )
    greys = np.repeat(
        np.arange(256, dtype=np.uint8)
        .repeat(16)
        .reshape(
            64,
            64,
            1,
        ),
        3,
        2,
    )
    images = [
        jpeg(noise, 100),
        jpeg(greys, 100),
        jpeg(picture(3, 64, 64)),
        jpeg(noise[..., 0]),
    ]
    flips = [0, 1, 1, 0]
    spec = DecodeSpec(64, resize=False, flip=True, lab=lab)
    lab_B3HW, mask_BHW = run(
        spec,
        encoded(images, flips=flips),
        num_threads,
    )

    assert mask_BHW is None
    assert lab_B3HW.shape == (4, 3, 64, 64)
    assert lab_B3HW.dtype == torch.float32
    assert lab_B3HW.is_contiguous()

    for image, flip, ours in zip(images, flips, lab_B3HW, strict=True):
        rgb_HW3 = decoded_by_pil(image)
        expected = reference(rgb_HW3[:, ::-1] if flip else rgb_HW3)
        assert (ours - expected).abs().max() < 1e-5


def test_mask_is_decoded_bit_exactly_and_never_mixed() -> None:
    mask = np.random.default_rng(1).integers(
        0,
        256,
        (48, 48),
        dtype=np.uint8,
    )
    images = [jpeg(picture(0, 48, 48))]
    _, masks = run(
        DecodeSpec(48, resize=False, mask=True),
        encoded(images, [png(mask)]),
    )

    assert masks.dtype == torch.int64
    assert np.array_equal(masks[0].numpy(), mask)
    halves = (
        np.where(np.arange(48) < 20, 3, 255)
        .astype(np.uint8)[None]
        .repeat(
            48,
            0,
        )
    )
    _, masks = run(
        DecodeSpec(31, mask=True),
        encoded(images, [png(halves)]),
    )

    assert set(masks.unique().tolist()) == {3, 255}


def test_mask_with_an_index_that_is_no_class_is_refused() -> None:
    images = [jpeg(picture(0, 48, 48))] * 3
    spec = DecodeSpec(48, resize=False, mask=True, num_classes=20)
    masks = [png(np.full((48, 48), value, np.uint8)) for value in (20, 255, 21)]

    with pytest.raises(DecodeError, match="index 21, of 20 classes"):
        run(spec, encoded(images, masks))
    run(
        spec,
        encoded(images[:2], masks[:2]),
    )


SIZES = [
    (96, 96),
    (120, 80),
    (61, 147),
    (200, 333),
]


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_picture_and_mask_stay_together(crop: bool, flip: bool) -> None:
    """Left, right, top and bottom have colors of their own, which the mask names.

    Blocks are large: the image's resize blends only at their edges.
    """
    colors = np.array(
        [
            [200, 30, 30],
            [30, 200, 30],
            [30, 30, 200],
            [220, 220, 40],
        ],
        np.uint8,
    )
    images = []
    masks = []
    windows = []
    for height, width in SIZES:
        y, x = np.mgrid[0:height, 0:width]
        index = 2 * (y > 0.37 * height) + (x > 0.61 * width)
        images.append(jpeg(colors[index], 100))
        masks.append(png((index + 1).astype(np.uint8)))
        windows.append(
            (
                height // 7,
                width // 5,
                height // 2,
                width // 2 + 3,
            )
        )

    spec = DecodeSpec(64, crop=crop, flip=flip, mask=True)
    lab_B3HW, mask_BHW = run(
        spec,
        encoded(
            images,
            masks,
            windows=windows,
            flips=[1, 0, 1, 1],
        ),
    )
    palette = torch.stack([reference(colors[i][None, None])[:, 0, 0] for i in range(4)])
    distance = (lab_B3HW[:, None] - palette[None, :, :, None, None]).square().sum(2)
    named = distance.argmin(1) + 1
    same = named == mask_BHW
    edges = torch.zeros_like(same)
    edges[:, :, 1:] |= mask_BHW[:, :, 1:] != mask_BHW[:, :, :-1]
    edges[:, 1:] |= mask_BHW[:, 1:] != mask_BHW[:, :-1]
    near = torch.nn.functional.max_pool2d(edges[:, None].float(), 5, 1, 2)[:, 0] > 0

    assert (same | near).all()
    assert (
        same.float().mean() > 0.97
    )  # a shift by two pixels would show: blocks span a dozen rows of edges
    assert len(mask_BHW.unique()) == 4


def test_crop_equals_cropping_by_hand() -> None:
    """A window of the output's size: the resize changes nothing."""
    rgb_HW3 = picture(5, 100, 90)
    data = jpeg(rgb_HW3, 100)
    spec = DecodeSpec(40, crop=True, flip=True)
    lab_B3HW, _ = run(
        spec,
        encoded(
            [data, data],
            windows=[(13, 27, 40, 40)] * 2,
            flips=[0, 1],
        ),
    )
    expected = decoded_by_pil(data)[13:53, 27:67]

    assert (lab_B3HW[0] - reference(expected)).abs().max() < 1e-5
    assert (lab_B3HW[1] - reference(expected[:, ::-1])).abs().max() < 1e-5


@pytest.mark.parametrize("lab", ["fused", "operators"])
def test_a_window_beyond_the_picture_is_grey_there_and_void_in_the_mask(lab: str) -> None:
    rgb_HW3 = picture(5, 20, 40)
    data = jpeg(rgb_HW3, 100)
    mask = png(np.ones((20, 40), np.uint8))
    spec = DecodeSpec(
        40,
        crop=True,
        pad=True,
        flip=True,
        mask=True,
        lab=lab,
    )
    batch = encoded(
        [data, data],
        [mask, mask],
        windows=[(-10, 0, 40, 40)] * 2,
        flips=[0, 1],
    )
    lab_B3HW, mask_BHW = run(spec, batch)

    beyond = torch.cat(
        [
            lab_B3HW[:, :, :10],
            lab_B3HW[:, :, 30:],
        ],
        dim=2,
    )
    assert beyond.abs().max() < 0.01  # L* 50 without color, normalised
    expected = decoded_by_pil(data)
    assert (lab_B3HW[0, :, 10:30] - reference(expected)).abs().max() < 2e-5
    assert (lab_B3HW[1, :, 10:30] - reference(expected[:, ::-1])).abs().max() < 2e-5
    expected_HW = torch.full((40, 40), 255)
    expected_HW[10:30] = 1
    assert (mask_BHW == expected_HW).all()


def test_resize_is_antialiased_and_centred() -> None:
    """Fine stripes become their mean; a ramp stays where it was."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    lab_B3HW, _ = run(
        DecodeSpec(16),
        encoded([jpeg(stripes, 100)]),
    )

    assert lab_B3HW[0, 0, :, 2:-2].std() < 0.02
    ramp = np.repeat(
        np.linspace(0, 255, 128)
        .astype(np.uint8)[None, :, None]
        .repeat(
            128,
            0,
        ),
        3,
        2,
    )
    lab_B3HW, _ = run(
        DecodeSpec(32),
        encoded([jpeg(ramp, 100)]),
    )
    mirrored, _ = run(
        DecodeSpec(32),
        encoded(
            [
                jpeg(
                    np.ascontiguousarray(ramp[:, ::-1]),
                    100,
                )
            ]
        ),
    )

    assert (lab_B3HW[0, 0] - mirrored[0, 0].flip(1)).abs().max() < 0.02


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"garbage" * 9,
        cut_in_the_pixels(jpeg(picture(0, 32, 32))),
    ],
    ids=["empty", "garbage", "cut"],
)
def test_decoder_survives_what_it_cannot_decode(damaged: bytes) -> None:
    """In a small batch also what shards/images/headers.py keeps away from it."""
    good = jpeg(picture(1, 32, 32))
    decoder = Decoder(
        DecodeSpec(32, resize=False),
        4,
        1,
        "cpu",
    )
    before, _, _ = decoder.convert(decoder.decode(encoded([good])))

    with pytest.raises(DecodeError):
        decoder.decode(encoded([good, damaged, good]))
    after, _, _ = decoder.convert(decoder.decode(encoded([good, good])))
    decoder.close()

    assert torch.equal(before[0], after[1])


def test_damaged_pixels_in_a_large_batch() -> None:
    """Any of them, many times over: the error comes when all of DALI's threads are done."""
    good = [jpeg(picture(index, 32, 32)) for index in range(64)]
    random = np.random.default_rng(0)
    decoder = Decoder(
        DecodeSpec(32, resize=False),
        64,
        2,
        "cpu",
    )
    for _ in range(40):
        images = list(good)
        for index in random.integers(0, 64, 3):
            images[index] = cut_in_the_pixels(images[index])
        with pytest.raises(DecodeError):
            decoder.decode(encoded(images))

    whole, _, _ = decoder.convert(decoder.decode(encoded(good)))
    decoder.close()

    assert whole.isfinite().all()


def test_results_own_their_memory() -> None:
    decoder = Decoder(
        DecodeSpec(32, resize=False, lab="operators", mask=True),
        1,
        1,
        "cpu",
    )
    mask = png(np.full((32, 32), 7, np.uint8))
    first, first_mask, _ = decoder.convert(
        decoder.decode(
            encoded(
                [jpeg(picture(1, 32, 32))],
                [mask],
            )
        )
    )
    kept = first.clone()
    for index in range(2, 6):
        decoder.convert(
            decoder.decode(
                encoded(
                    [jpeg(picture(index, 32, 32))],
                    [png(np.zeros((32, 32), "u1"))],
                )
            )
        )

    decoder.close()

    assert torch.equal(first, kept)
    assert (first_mask == 7).all()


def test_exif_rotation_is_ignored() -> None:
    """The packer turns images upright; a leftover tag must not turn one against its mask."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(2, 32, 32)).save(
        stream,
        "JPEG",
        quality=95,
        subsampling=0,
        exif=exif,
    )
    plain, _ = run(
        DecodeSpec(32, resize=False),
        encoded([jpeg(picture(2, 32, 32))]),
    )
    tagged, _ = run(
        DecodeSpec(32, resize=False),
        encoded([stream.getvalue()]),
    )

    assert torch.equal(plain, tagged)


def test_fused_kernel_is_refused_on_a_gpu() -> None:
    with pytest.raises(ValueError, match="lab='operators'"):
        Decoder(DecodeSpec(32), 1, 1, "cuda:0")


@pytest.mark.parametrize("lab", ["fused", "operators"])
@pytest.mark.parametrize(
    "limit",
    [10**9, 19_300, 9_900, 1],
)
def test_a_batch_of_large_images_is_decoded_in_parts(
    lab: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors, however it is cut; an image over the limit is decoded alone."""
    images = [jpeg(picture(index, *size)) for index, size in enumerate(SIZES)]
    masks = [png(np.full(size, index, np.uint8)) for index, size in enumerate(SIZES)]
    batch = encoded(
        images,
        masks,
        windows=[(3, 4, 40, 50)] * 4,
        flips=[0, 1, 1, 0],
    )
    spec = DecodeSpec(
        32,
        crop=True,
        flip=True,
        mask=True,
        lab=lab,
    )
    whole_lab, whole_mask = run(spec, batch)

    batch.num_pixels = np.array([9_000, 9_600, 600, 300])
    monkeypatch.setattr("shards.decoding.decoder.MAX_DECODED_PIXELS", limit)
    decoder = Decoder(spec, 4, 1, "cpu")
    lab_B3HW, mask_BHW, _ = decoder.convert(decoder.decode(batch))
    again, _, _ = decoder.convert(decoder.decode(batch))
    decoder.close()

    assert torch.equal(lab_B3HW, whole_lab)
    assert torch.equal(again, whole_lab)
    assert mask_BHW is not None
    assert torch.equal(mask_BHW, whole_mask)


def test_damage_in_one_part_is_found_and_the_decoder_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = [jpeg(picture(index, 40, 40)) for index in range(4)]
    bad = encoded([*good[:2], b"garbage", good[3]])
    whole = encoded(good)
    bad.num_pixels = whole.num_pixels = np.full(4, 1_600)
    monkeypatch.setattr("shards.decoding.decoder.MAX_DECODED_PIXELS", 3_200)

    decoder = Decoder(DecodeSpec(32), 4, 1, "cpu")
    expected, _ = run(DecodeSpec(32), encoded(good))
    with pytest.raises(DecodeError):
        decoder.decode(bad)
    lab_B3HW, _, _ = decoder.convert(decoder.decode(whole))
    decoder.close()
    assert torch.equal(lab_B3HW, expected)


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("Error in thread 0: Can't allocate 16777216 bytes on device 0.", True),
        ("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory", True),
        ("Failed to decode sample 3 out of 8", False),
    ],
)
def test_a_full_gpu_is_no_damaged_photo(text: str, is_fault: bool) -> None:
    assert bool(GPU_FAULT.search(text)) == is_fault
