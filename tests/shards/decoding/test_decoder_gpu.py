"""What only a GPU can show of the decoder: pixels, the consumer's stream, other formats, damage."""

import io

import numpy as np
import pytest
import torch
from helpers.tiny_set import jpeg, picture, png, without_quantization
from PIL import Image

from shards.decoding.decoder import (
    DecodedImages,
    DecodeError,
    Decoder,
    EncodedBatch,
    wait_on_current_stream,
)
from shards.decoding.spec import DecodeSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device",
    ),
]
NUM_IMAGES = 16


def batch_of(
    images: list[bytes],
    masks: list[bytes] | None = None,
) -> EncodedBatch:
    number = len(images)
    windows = np.array(
        [(5, 9, 70, 80)] * number,
        np.int32,
    )
    flips = np.arange(number, dtype=np.int32) % 2
    return EncodedBatch(images, windows, flips, masks or ())


def decoded(spec: DecodeSpec, batch: EncodedBatch, device: str) -> DecodedImages:
    decoder = Decoder(
        spec,
        len(batch.images),
        2,
        device,
    )
    images = decoder.convert(decoder.decode(batch))
    wait_on_current_stream(images)
    decoder.close()

    return images


def test_a_gpu_decodes_as_the_cpu_does() -> None:
    """By quantiles: nvJPEG's inverse transform may differ by up to 3 levels in single pixels."""
    images = [jpeg(picture(index, 90, 120)) for index in range(NUM_IMAGES)]
    masks = [png(np.full((90, 120), index, np.uint8)) for index in range(NUM_IMAGES)]
    batch = batch_of(images, masks)
    spec = DecodeSpec(
        64,
        crop=True,
        flip=True,
        mask=True,
        lab="operators",
    )

    on_cpu = decoded(spec, batch, "cpu")
    on_gpu = decoded(spec, batch, "cuda:0")
    assert on_gpu.lab_B3HW.device.type == "cuda"
    assert on_gpu.mask_BHW is not None
    assert on_cpu.mask_BHW is not None
    assert torch.equal(on_gpu.mask_BHW.cpu(), on_cpu.mask_BHW)

    difference = (on_gpu.lab_B3HW.cpu() - on_cpu.lab_B3HW).abs().flatten()
    quantiles = torch.quantile(
        difference,
        torch.tensor([0.5, 0.99, 0.9999]),
    )
    assert quantiles[0] < 0.5 / 255
    assert quantiles[1] < 4 / 255
    assert quantiles[2] < 12 / 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_decoded_on_the_host(kind: str) -> None:
    images = []
    for index in range(NUM_IMAGES):
        stream = io.BytesIO()
        Image.fromarray(picture(index, 64, 64)).save(
            stream,
            kind,
            lossless=True,
        )
        images.append(stream.getvalue())

    spec = DecodeSpec(64, resize=False, lab="operators")
    on_cpu = decoded(spec, batch_of(images), "cpu").lab_B3HW
    on_gpu = decoded(spec, batch_of(images), "cuda:0").lab_B3HW
    assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-3


def test_the_same_batch_gives_the_same_bits() -> None:
    """Also with a share for the hardware decoder: a run on GPUs can be repeated."""
    batch = batch_of([jpeg(picture(index, 90, 120)) for index in range(NUM_IMAGES)])
    spec = DecodeSpec(64, crop=True, lab="operators")
    first = decoded(spec, batch, "cuda:0").lab_B3HW
    for _ in range(5):
        assert torch.equal(decoded(spec, batch, "cuda:0").lab_B3HW, first)


def test_the_consumer_waits_for_complete_tensors_without_waiting_itself() -> None:
    """The default stream is busy while batches are made and handed over, and freed at once."""
    images = [jpeg(picture(index, 64, 64)) for index in range(NUM_IMAGES)]
    spec = DecodeSpec(64, resize=False, lab="operators")
    expected = decoded(
        spec,
        batch_of(images),
        "cuda:0",
    ).lab_B3HW.mean(dim=(1, 2, 3))

    decoder = Decoder(spec, NUM_IMAGES, 2, "cuda:0")
    means = []
    for _ in range(20):
        torch.cuda._sleep(10_000_000)
        made = decoder.convert(decoder.decode(batch_of(images)))
        wait_on_current_stream(made)
        means.append(made.lab_B3HW.mean(dim=(1, 2, 3)))
        del made  # its memory may be given out again only after the mean is taken
    decoder.close()
    for mean in means:
        assert torch.equal(mean, expected)


def test_damage_is_found_and_the_decoder_goes_on() -> None:
    good = [jpeg(picture(index, 64, 64)) for index in range(NUM_IMAGES)]
    bad = [
        *good[:-1],
        without_quantization(good[-1]),
    ]
    decoder = Decoder(
        DecodeSpec(64, resize=False, lab="operators"),
        NUM_IMAGES,
        2,
        "cuda:0",
    )
    with pytest.raises(DecodeError):
        decoder.decode(batch_of(bad))

    made = decoder.convert(decoder.decode(batch_of(good)))
    wait_on_current_stream(made)

    assert bool(made.lab_B3HW.isfinite().all())

    decoder.close()
