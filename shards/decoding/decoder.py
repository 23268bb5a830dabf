"""Encoded images and masks to tensors, one batch at a time, on either device.

Between the reading threads and the training loop (shards/loading/micro_batches.py). The graph is in
shards/decoding/dali.py. What follows it on the CPU is here: one kernel for resize, flip and Lab
(shards/decoding/lab.py and resize.py), run by a few threads without Python's lock.

What cannot be decoded: on the CPU libjpeg-turbo decides, on a GPU nvJPEG or its fallback. They
agree on bytes that are no JPEG; a damaged scan that one of them repairs may be refused by the
other, so that a damaged set can have other replacements on another device. Truncated scans, the
common damage, are refused before either sees them (shards/loading/members.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from shards.decoding.buffers import Buffers
from shards.decoding.lab import lab_from_srgb, linear_from_srgb
from shards.decoding.resize import lab_resized
from shards.decoding.spec import DecodeSpec
from shards.records import VOID

# Pixels that are decoded at a time, 400 MB of RGB. A batch of large photos is decoded in parts: 32
# of 24 megapixels would take 2.3 GB, twice.
MAX_DECODED_PIXELS = 2**27
# In DALI's report: the GPU has no memory left, which is no fault of a photo.
GPU_FAULT = re.compile(r"Can't allocate \d+ bytes on device|CUDA allocation failed|out of memory")


class DecodeError(Exception):
    """A batch that could not be decoded: some sample in it is damaged; which one is unknown."""


@dataclass
class EncodedBatch:
    """The graph's input: B samples.

    Attributes:
        images: JPEG bytes.
        windows: Crop windows (y, x, height, width) in pixels, int32, shape (B, 4); used if the
            graph crops.
        flips: 1 = mirror, int32, shape (B,); used if the spec flips.
        masks: Bytes of grey PNGs; used if the graph has masks.
        num_pixels: Of each stored image, int64, shape (B,); None: they are all small.
    """

    images: Sequence[bytes]
    windows: NDArray[np.int32]
    flips: NDArray[np.int32]
    masks: Sequence[bytes] = ()
    num_pixels: NDArray[np.int64] | None = None

    def part(self, begin: int, end: int) -> EncodedBatch:
        """Return some of the samples as a batch of their own."""
        return EncodedBatch(
            self.images[begin:end],
            self.windows[begin:end],
            self.flips[begin:end],
            self.masks[begin:end],
        )


@dataclass
class Fetched:
    """The graph's outputs, in DALI's memory, and the flips that the fused kernel has to make."""

    outputs: list[Any]
    flips: NDArray[np.int32]
    images: DecodedImages | None = None  # finished already: a batch that was decoded in parts


class DecodedImages(NamedTuple):
    """Finished tensors, in memory that stays theirs while they live.

    Attributes:
        lab_B3HW: float32 on the device.
        mask_BHW: int64 on the device; None without masks.
        ready: On a GPU: recorded on the decoder's stream when the tensors are complete.
    """

    lab_B3HW: Tensor
    mask_BHW: Tensor | None
    ready: torch.cuda.Event | None


class Decoder:
    """The graph with its queue of one batch.

    `submit` a batch, `fetch` it, then `convert` it while the next one decodes. Not thread-safe; one
    thread drives it. On a GPU its copies run on a CUDA stream of its own, so that the thread never
    waits for training work that is queued on the default stream.

    Args:
        spec: The work.
        max_batch_size: Most samples in a batch.
        num_threads: Decoding threads.
        device: "cpu" or "cuda:N".
        num_buffers: CPU: output arrays that are used again.
    """

    def __init__(
        self,
        spec: DecodeSpec,
        max_batch_size: int,
        num_threads: int,
        device: str,
        num_buffers: int = 16,
    ) -> None:
        self._spec = spec
        self._max_batch_size = max_batch_size
        self._num_threads = num_threads
        self._device = torch.device(device)
        on_gpu = self._device.type != "cpu"
        if on_gpu and spec.lab == "fused":
            raise ValueError(
                "the fused kernel runs on the CPU; a GPU computes Lab with lab='operators'"
            )

        self._submitted_flips = np.empty(0, np.int32)
        self._parts: list[EncodedBatch] = []
        self._linear = linear_from_srgb()
        self._buffers = Buffers(num_buffers)
        self._workers = ThreadPoolExecutor(num_threads, "shards-lab") if num_threads > 1 else None
        self._stream = _stream_of(self._device) if on_gpu else None
        self._pipeline = self._build()

    def submit(self, batch: EncodedBatch) -> None:
        """Start on a batch; its result must be fetched before the next one is submitted."""
        edges = self._cut(batch)
        # Usual batches stay whole, and so decode while the one before becomes Lab.
        if len(edges) > 2:
            self._parts = [batch.part(begin, end) for begin, end in pairwise(edges)]
        else:
            self._start(batch)

    def _start(self, batch: EncodedBatch) -> None:
        spec, feed = self._spec, self._pipeline.feed_input

        feed(
            "images",
            [np.frombuffer(image, np.uint8) for image in batch.images],
        )
        if spec.crop:
            feed("starts", list(batch.windows[:, :2]))
            feed("shapes", list(batch.windows[:, 2:]))
        if spec.flips_in_graph:
            feed("flips", list(batch.flips))
        if spec.mask:
            feed(
                "masks",
                [np.frombuffer(mask, np.uint8) for mask in batch.masks],
            )

        self._submitted_flips = batch.flips
        self._pipeline.schedule_run()

    def fetch(self) -> Fetched:
        """Wait for the batch and return the graph's outputs, for `convert`.

        Raises:
            DecodeError: A sample could not be decoded, or its mask holds indices that are no
                classes. The decoder is ready for another batch.
            torch.OutOfMemoryError: The GPU's memory is full.
        """
        if self._parts:
            return self._fetch_parts()
        return self._fetch()

    def _cut(self, batch: EncodedBatch) -> list[int]:
        """Return where to cut a batch so that no part of several images has too many pixels."""
        number = len(batch.images)
        if batch.num_pixels is None or not self._spec.resizes:
            return [0, number]

        edges, pixels = [0], 0
        for index, size in enumerate(batch.num_pixels.tolist()):
            if index > edges[-1] and pixels + size > MAX_DECODED_PIXELS:
                edges.append(index)
                pixels = 0
            pixels += size
        return [*edges, number]

    def _fetch_parts(self) -> Fetched:
        """Decode the parts one after another; each becomes Lab before the next is decoded."""
        parts, self._parts = self._parts, []
        finished = []
        for part in parts:
            self._start(part)
            finished.append(self.convert(self._fetch()))

        context = torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()
        with context:
            lab_B3HW = torch.cat([images.lab_B3HW for images in finished])
            masks = [images.mask_BHW for images in finished if images.mask_BHW is not None]
            mask_BHW = torch.cat(masks) if masks else None
            ready = self._stream.record_event() if self._stream is not None else None
        return Fetched([], self._submitted_flips, DecodedImages(lab_B3HW, mask_BHW, ready))

    def _fetch(self) -> Fetched:
        try:
            outputs: list[Any] = list(self._pipeline.share_outputs())
            self._pipeline.release_outputs()
        except RuntimeError as error:
            if GPU_FAULT.search(str(error)):
                raise torch.OutOfMemoryError(f"DALI: {_reason(error)}") from error
            # DALI does not use a pipeline again after an error (DALI issue 3913). Building another
            # takes milliseconds on a CPU, and about a second on a GPU: each decoding thread sets
            # its state up again.
            self._pipeline = self._build()
            raise DecodeError(_reason(error)) from None

        if self._spec.mask:
            _check_masks(np.asarray(outputs[-1].as_tensor()), self._spec.num_classes)
        return Fetched(outputs, self._submitted_flips)

    def decode(self, batch: EncodedBatch) -> Fetched:
        """Submit and fetch a batch.

        Raises:
            DecodeError: As `fetch`.
        """
        self.submit(batch)
        return self.fetch()

    def convert(self, fetched: Fetched) -> DecodedImages:
        """Return the graph's outputs as tensors on the device."""
        if fetched.images is not None:
            return fetched.images

        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            if self._spec.lab == "fused":
                lab_B3HW = self._fused_lab(fetched)
            else:
                # Cloned: DALI writes its next batch into the same memory.
                lab_B3HW = as_tensor(fetched.outputs[0]).clone()

            mask_BHW = None
            if self._spec.mask:
                mask_BHW = as_tensor(fetched.outputs[1])[..., 0].to(torch.int64)

            ready = self._stream.record_event() if self._stream is not None else None
        return DecodedImages(lab_B3HW, mask_BHW, ready)

    def close(self) -> None:
        """End the threads; the decoder cannot be used any more."""
        if self._workers is not None:
            self._workers.shutdown()
        del self._pipeline

    def _build(self) -> Any:
        # Only now: programs that never decode a batch do without DALI and its memory.
        from shards.decoding.dali import build_pipeline

        return build_pipeline(self._spec, self._max_batch_size, self._num_threads, self._device)

    def _fused_lab(self, fetched: Fetched) -> Tensor:
        images, size, ab_scale = fetched.outputs[0], self._spec.image_size, self._spec.ab_scale
        number = len(images)
        mirror_B = np.zeros(number, np.bool_)
        if self._spec.flip:
            mirror_B = fetched.flips.astype(np.bool_)
        lab_B3HW = self._buffers.take((number, 3, size, size))

        # Images of any size are resized one by one; those of the output's size go in blocks.
        if self._spec.resizes:

            def resize(index: int) -> None:
                rgb_HW3 = np.asarray(images[index])
                lab_resized(
                    rgb_HW3,
                    mirror_B[index],
                    lab_B3HW[index],
                    self._linear,
                    ab_scale,
                )

            self._in_threads(resize, range(number))
        else:
            rgb_BHW3 = np.asarray(images.as_tensor())
            # A block per thread: rows of several images share the kernel's scratch rows.
            block_size = -(-number // self._num_threads)

            def convert(begin: int) -> None:
                block = slice(begin, begin + block_size)
                lab_from_srgb(
                    rgb_BHW3[block], mirror_B[block], lab_B3HW[block], self._linear, ab_scale
                )

            self._in_threads(convert, range(0, number, block_size))
        return torch.from_numpy(lab_B3HW)

    def _in_threads(self, work: Callable[[int], None], indices: range) -> None:
        for _ in (self._workers.map if self._workers else map)(work, indices):
            pass


def wait_on_current_stream(images: DecodedImages) -> None:
    """Make the consumer's CUDA stream wait for the tensors; the host does not wait.

    The tensors' memory belongs to the decoder's stream: it is given out again only when the
    consumer's work on them is done too. On the CPU there is nothing to do.
    """
    if images.ready is None:
        return

    stream = torch.cuda.current_stream(images.lab_B3HW.device)
    stream.wait_event(images.ready)
    for tensor in (images.lab_B3HW, images.mask_BHW):
        if tensor is not None:
            tensor.record_stream(stream)


def as_tensor(outputs: Any) -> Tensor:
    """Return a batch of equal shapes as one tensor that shares DALI's memory."""
    tensor: Tensor = from_dlpack(outputs.as_tensor())
    return tensor


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all decoders on a GPU.

    Memory is cached by stream: with another one for every validation, torch would reserve more each
    time.
    """
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _check_masks(masks_BHW1: NDArray[np.uint8], num_classes: int) -> None:
    """Refuse indices that would fail in the loss of a training step, far from their cause."""
    # 0 is background, so the largest class is num_classes itself.
    strange = masks_BHW1[(masks_BHW1 > num_classes) & (masks_BHW1 != VOID)]
    if len(strange):
        raise DecodeError(f"the mask holds index {int(strange[0])}, of {num_classes} classes")


def _reason(error: RuntimeError) -> str:
    """Return the line of DALI's report with the cause."""
    text = str(error)
    if "Failed to decode sample" in text:
        return "damaged pixels"

    report = text.partition("encountered:")[2]
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    return lines[0] if lines else text.splitlines()[0]
