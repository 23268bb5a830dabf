"""One DALI graph for both devices: bytes in, normalised Lab and mask tensors out.

The only file that imports DALI, between the reader and the training loop. The graph is

    encoded bytes, crop window, flip -> decode, crop -> resize, flip, Lab
    encoded mask, the same window and flip -> decode, crop -> resize (nearest), flip

on the CPU, or on a GPU with decode as `mixed` (nvJPEG) and masks decoded on the host. Nothing in it is
random: what varies comes in as numbers. Pictures packed at the training size skip crop and resize.

On the CPU what follows the decoder is one numba kernel that reads the graph's bytes and writes straight into the
output tensor (`lab="fused"`, shards/decoding/lab.py and shards/decoding/resize.py). A photo to 256x256 takes it 0.55 ms, where DALI's
operators take 3 ms for the resize, 0.15 ms for the flip and 6 ms for Lab; inside the graph, as `numba_function`, its
float planes would have to be copied out once more. On a GPU, and on the CPU where asked for, it is the operators
(`lab="operators"`); a test holds the two together.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, math, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from shards.decoding.buffers import Buffers
from shards.decoding.lab import WHITE, XYZ_FROM_RGB, lab_from_srgb, linear_from_srgb
from shards.decoding.resize import lab_resized
from shards.manifest import VOID

# f(t) without a branch meets its linear half at d^3: cbrt(max(t, d^3)) + (min(t, d^3) - d^3) / (3 d^2).
_D = 6.0 / 29.0


class DecodeError(Exception):
    """A batch that could not be decoded: some sample in it is damaged. Which one, it does not say."""


@dataclass(frozen=True)
class DecodeSpec:
    """What the graph has to do.

    Attributes:
        image_size: Side of the square output in pixels.
        crop: Cut each sample's window out before resizing.
        resize: False where every picture already has the output's size.
        flip: Mirror the samples that say so.
        mask: Decode a mask beside each picture.
        num_classes: Largest class index that a mask may hold beside 255 (void).
        ab_scale: What a and b are divided by.
        lab: `fused` (CPU only) or `operators`.
        hardware_decoder_load: GPU: share of the JPEGs for the hardware decoder, where the GPU has one.
        decoder_memory_hint: GPU: bytes set aside at first for each decoder thread.
    """

    image_size: int
    crop: bool = False
    resize: bool = True
    flip: bool = False
    mask: bool = False
    num_classes: int = 254
    ab_scale: float = 128.0
    lab: Literal["fused", "operators"] = "fused"
    hardware_decoder_load: float = 0.65
    decoder_memory_hint: int = 16 * 2**20

    @property
    def resizes(self) -> bool:
        """Whether anything is left to resize after cutting."""
        return self.resize or self.crop

    @property
    def flips_in_graph(self) -> bool:
        """Whether anything is mirrored by DALI: masks, and what the fused kernel does not see."""
        return self.flip and (self.mask or self.lab == "operators")


@dataclass
class EncodedBatch:
    """What the graph eats: B samples.

    Attributes:
        images: JPEG bytes.
        windows: (y, x, height, width) in pixels, int32, shape (B, 4); looked at where the graph crops.
        flips: 1 = mirror, int32, shape (B,); looked at where the graph flips.
        masks: Bytes of grey PNGs; looked at where the graph has masks.
    """

    images: Sequence[bytes]
    windows: NDArray[np.int32]
    flips: NDArray[np.int32]
    masks: Sequence[bytes] = ()


@dataclass
class Fetched:
    """The graph's outputs, in DALI's memory, and the flips that are still to be made of them."""

    outputs: list[Any]
    flips: NDArray[np.int32]


class Decoder:
    """The graph with its queue of one batch: `submit`, `fetch`, then `convert` while the next one decodes.

    Not thread-safe; one thread drives it.
    """

    def __init__(
        self, spec: DecodeSpec, max_batch_size: int, num_threads: int, device: str
    ) -> None:
        self._spec, self._max_batch_size, self._num_threads = spec, max_batch_size, num_threads
        self._submitted = np.empty(0, np.int32)  # the flips of the batch in the queue
        self._device = torch.device(device)
        if self._device.type != "cpu" and spec.lab == "fused":
            raise ValueError(
                "the fused kernel runs on the CPU; a GPU computes Lab with lab='operators'"
            )
        self._linear = linear_from_srgb()
        self._buffers = Buffers()
        self._workers = ThreadPoolExecutor(num_threads, "shards-lab") if num_threads > 1 else None
        self._pipeline = self._build()

    def submit(self, batch: EncodedBatch) -> None:
        """Start on a batch; its result must be fetched before the next one is submitted."""
        spec, feed = self._spec, self._pipeline.feed_input
        feed("images", [np.frombuffer(image, np.uint8) for image in batch.images])
        if spec.crop:
            feed("starts", list(batch.windows[:, :2]))
            feed("shapes", list(batch.windows[:, 2:]))
        if spec.flips_in_graph:
            feed("flips", list(batch.flips))
        if spec.mask:
            feed("masks", [np.frombuffer(mask, np.uint8) for mask in batch.masks])
        self._submitted = batch.flips
        self._pipeline.schedule_run()

    def fetch(self) -> Fetched:
        """Wait for the batch and return the graph's outputs, for `convert`.

        Raises:
            DecodeError: A sample could not be decoded, or its mask holds indices that are no classes. The
                decoder is ready for another batch.
        """
        try:
            outputs: list[Any] = list(self._pipeline.share_outputs())
            self._pipeline.release_outputs()
        except RuntimeError as error:
            # The pipeline object is dead by design (DALI issue 3913); building another takes milliseconds.
            self._pipeline = self._build()
            raise DecodeError(_reason(error)) from None
        if self._spec.mask:
            _check_masks(_as_tensor(outputs[1]), self._spec.num_classes)
        return Fetched(outputs, self._submitted)

    def decode(self, batch: EncodedBatch) -> Fetched:
        """`submit` and `fetch`."""
        self.submit(batch)
        return self.fetch()

    def convert(self, fetched: Fetched) -> tuple[Tensor, Tensor | None]:
        """The graph's outputs as tensors on the device.

        Returns:
            lab_B3HW float32 and mask_BHW int64 (None without masks), in memory that stays theirs while they live.
        """
        fused = self._spec.lab == "fused"
        lab_B3HW = self._fused_lab(fetched) if fused else _as_tensor(fetched.outputs[0]).clone()
        if not self._spec.mask:
            return lab_B3HW, None
        return lab_B3HW, _as_tensor(fetched.outputs[1])[..., 0].to(torch.int64)

    def close(self) -> None:
        """End the threads; the decoder cannot be used any more."""
        if self._workers is not None:
            self._workers.shutdown()
        del self._pipeline

    def _fused_lab(self, fetched: Fetched) -> Tensor:
        images, size, ab_scale = fetched.outputs[0], self._spec.image_size, self._spec.ab_scale
        mirror_B = (fetched.flips if self._spec.flip else np.zeros(len(images))).astype(np.bool_)
        lab_B3HW = self._buffers.take((len(images), 3, size, size))
        run = -(-len(images) // self._num_threads)

        def convert(begin: int) -> None:
            part = slice(begin, begin + run)
            lab_from_srgb(rgb_BHW3[part], mirror_B[part], lab_B3HW[part], self._linear, ab_scale)

        def resize(index: int) -> None:
            lab_resized(
                np.asarray(images[index]), mirror_B[index], lab_B3HW[index], self._linear, ab_scale
            )

        if self._spec.resizes:
            self._in_threads(resize, range(len(images)))
        else:
            rgb_BHW3 = np.asarray(images.as_tensor())
            self._in_threads(convert, range(0, len(images), run))
        return torch.from_numpy(lab_B3HW)

    def _in_threads(self, work: Callable[[int], None], indices: range) -> None:
        for _ in (self._workers.map if self._workers else map)(work, indices):
            pass

    def _build(self) -> Any:
        on_gpu = self._device.type != "cpu"
        pipeline = Pipeline(
            batch_size=self._max_batch_size,
            num_threads=self._num_threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,
        )
        with pipeline:
            pipeline.set_outputs(*_graph(self._spec, on_gpu))
        pipeline.build()
        return pipeline


def _graph(spec: DecodeSpec, on_gpu: bool) -> list[Any]:
    """The whole graph: its outputs are the picture and, where asked for, the mask."""
    windows = None
    if spec.crop:
        windows = tuple(
            fn.external_source(name=name, dtype=types.INT32, ndim=1)
            for name in ("starts", "shapes")
        )
    flips = (
        fn.external_source(name="flips", dtype=types.INT32, ndim=0) if spec.flips_in_graph else None
    )
    picture = _decoded("images", windows, spec, on_gpu, types.RGB)
    if spec.lab == "operators":
        if spec.resizes:
            picture = fn.resize(
                picture, size=[spec.image_size] * 2, interp_type=types.INTERP_LINEAR, antialias=True
            )
        picture = fn.flip(picture, horizontal=flips) if flips is not None else picture
        picture = _lab_operators(picture, spec.ab_scale)
    outputs = [picture]
    if spec.mask:
        mask = _decoded("masks", windows, spec, False, types.GRAY)
        if spec.resizes:
            mask = fn.resize(
                mask, size=[spec.image_size] * 2, interp_type=types.INTERP_NN, antialias=False
            )
        mask = fn.flip(mask, horizontal=flips) if flips is not None else mask
        outputs.append(mask.gpu() if on_gpu else mask)
    return outputs


def _decoded(
    name: str, windows: tuple[Any, ...] | None, spec: DecodeSpec, on_gpu: bool, colors: Any
) -> Any:
    """Bytes to pixels, cut to the window. EXIF is ignored, as it would turn a picture against its mask."""
    encoded = fn.external_source(name=name, dtype=types.UINT8, ndim=1)
    options: dict[str, Any] = {"output_type": colors, "adjust_orientation": False}
    if on_gpu:
        options |= {
            "device": "mixed",
            "hw_decoder_load": spec.hardware_decoder_load,
            "device_memory_padding": spec.decoder_memory_hint,
            "jpeg_fancy_upsampling": True,  # as libjpeg does on the CPU: chroma is what we learn
        }
    if windows is None:
        return fn.decoders.image(encoded, **options)
    return fn.decoders.image_slice(
        encoded, start=windows[0], shape=windows[1], axes=[0, 1], **options
    )


def _lab_operators(rgb: Any, ab_scale: float) -> Any:
    """Normalised Lab, CHW, from sRGB bytes, HWC, by DALI's operators."""
    linear = fn.lookup_table(
        rgb, keys=list(range(256)), values=linear_from_srgb().tolist(), dtype=types.FLOAT
    )
    xyz = fn.coord_transform(linear, M=(XYZ_FROM_RGB / WHITE[:, None]).ravel().tolist())
    low = math.min(xyz, _D**3)
    f_xyz = math.cbrt(math.max(xyz, _D**3)) + (low - _D**3) * (1.0 / (3.0 * _D**2))
    matrix = np.array([[0.0, 116.0 / 50.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
    matrix[1:] /= ab_scale
    lab = fn.coord_transform(f_xyz, M=matrix.ravel().tolist(), T=[-16.0 / 50.0 - 1.0, 0.0, 0.0])
    return fn.transpose(lab, perm=[2, 0, 1])


def _as_tensor(outputs: Any) -> Tensor:
    """A batch of equal shapes as one tensor that shares DALI's memory."""
    tensor: Tensor = from_dlpack(outputs.as_tensor())
    return tensor


def _check_masks(masks_BHW1: Tensor, num_classes: int) -> None:
    """Refuse indices that would end a training step in the loss, far from their cause."""
    strange = masks_BHW1[(masks_BHW1 > num_classes) & (masks_BHW1 != VOID)]
    if strange.numel():
        raise DecodeError(f"the mask holds index {int(strange[0])}, of {num_classes} classes")


def _reason(error: RuntimeError) -> str:
    """The line of DALI's report that says what went wrong."""
    text = str(error)
    if "Failed to decode sample" in text:
        return "damaged pixels"
    lines = [
        line.strip() for line in text.partition("encountered:")[2].splitlines() if line.strip()
    ]
    return lines[0] if lines else text.splitlines()[0]
