"""The DALI graph, one for both devices: encoded bytes in; pixels or normalised Lab, and masks, out.

The only file that imports DALI; it is imported with the first decoder. The graph is

    encoded image, crop window, flip -> decode, crop -> resize, flip, Lab
    encoded mask, the same window and flip -> decode, crop -> resize (nearest), flip

on the CPU, or on a GPU with decode as `mixed` (nvJPEG) and masks decoded on the host. Nothing in it
is random: what varies comes in as numbers. Images packed at the training size skip crop and resize.

On the CPU the graph stops after decode and crop (`lab="fused"`): resize, flip and Lab are one numba
kernel that reads the graph's bytes and writes straight into the output tensor
(shards/decoding/decoder.py). From a photo to 256x256 it takes 0.55 ms, where DALI's operators take
3 ms for the resize, 0.15 ms for the flip and 6 ms for Lab; inside the graph, as `numba_function`,
its float planes would have to be copied out once more. On a GPU, and on the CPU on request, Lab is
made of DALI's operators (`lab="operators"`); a test compares the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, types

from shards.decoding.lab import WHITE, XYZ_FROM_RGB, linear_from_srgb
from shards.decoding.spec import DecodeSpec
from shards.records import VOID

# f(t) without a branch is continuous at d^3: cbrt(max(t, d^3)) + (min(t, d^3) - d^3) / (3 d^2).
_D = 6.0 / 29.0
# DALI's own default, set aside per decoding thread: enough for a photo of 12 megapixels.
_PHOTO_PADDING_BYTES = 16 << 20
_MIN_PADDING_BYTES = 1 << 20
# sRGB of L* = 50: L' is 0 there, as in the zeros around the image that convolutions see.
PADDING_GREY = 119


def build_pipeline(
    spec: DecodeSpec, max_batch_size: int, num_threads: int, device: torch.device
) -> Any:
    """Build the pipeline for a device, ready for `feed_input`.

    Its inputs are `images`, and as the spec needs them `starts`, `shapes`, `flips` and `masks`; its
    outputs are those of `graph`.
    """
    pipeline = define_pipeline(spec, max_batch_size, num_threads, device)
    pipeline.build()
    return pipeline


def define_pipeline(
    spec: DecodeSpec, max_batch_size: int, num_threads: int, device: torch.device
) -> Any:
    """Define the pipeline without building it, which needs no GPU for a GPU's graph."""
    on_gpu = device.type != "cpu"
    pipeline = Pipeline(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=(device.index or 0) if on_gpu else None,
        # One batch: the caller overlaps decoding itself, and each batch in the queue holds its
        # memory.
        prefetch_queue_depth=1,
    )
    with pipeline:
        pipeline.set_outputs(*graph(spec, on_gpu))
    return pipeline


def graph(spec: DecodeSpec, on_gpu: bool) -> list[Any]:
    """Define the graph.

    Returns:
        The image; with masks also the mask, and on a GPU the mask once more on the host: there its
        indices are checked, without making the device's stream wait.
    """
    windows = None
    if spec.crop:
        starts = fn.external_source(name="starts", dtype=types.INT32, ndim=1)
        shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
        windows = (starts, shapes)

    flips = None
    if spec.flips_in_graph:
        flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)

    outputs = [_image(spec, windows, flips, on_gpu)]
    if spec.mask:
        mask = _mask(spec, windows, flips)
        outputs += [mask.gpu(), mask] if on_gpu else [mask]
    return outputs


def lab_operators(rgb: Any, ab_scale: float) -> Any:
    """Turn sRGB bytes, HWC, into normalised Lab, CHW, with DALI's operators."""
    linear = fn.lookup_table(
        rgb, keys=list(range(256)), values=linear_from_srgb().tolist(), dtype=types.FLOAT
    )
    xyz = fn.coord_transform(linear, M=(XYZ_FROM_RGB / WHITE[:, None]).ravel().tolist())

    # CIELAB's f(t): a cube root above d^3 and a line below it.
    low = math.min(xyz, _D**3)
    f_xyz = math.cbrt(math.max(xyz, _D**3)) + (low - _D**3) * (1.0 / (3.0 * _D**2))

    # L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z)), normalised.
    matrix = np.array([[0.0, 116.0 / 50.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
    matrix[1:] /= ab_scale
    offset = [-16.0 / 50.0 - 1.0, 0.0, 0.0]
    lab = fn.coord_transform(f_xyz, M=matrix.ravel().tolist(), T=offset)
    # Last: DALI's operators work on interleaved pixels.
    return fn.transpose(lab, perm=[2, 0, 1])


def _image(spec: DecodeSpec, windows: tuple[Any, Any] | None, flips: Any, on_gpu: bool) -> Any:
    options = _gpu_options(spec) if on_gpu else {}
    beyond = PADDING_GREY if spec.pad else None
    image = _decoded("images", windows, beyond, output_type=types.RGB, **options)
    if spec.lab == "fused":
        return image

    if spec.resizes:
        size = [spec.image_size, spec.image_size]
        image = fn.resize(
            image,
            size=size,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
    if flips is not None:
        image = fn.flip(image, horizontal=flips)
    return lab_operators(image, spec.ab_scale)


def _mask(spec: DecodeSpec, windows: tuple[Any, Any] | None, flips: Any) -> Any:
    """Decode a mask on the host: nvJPEG has no PNG, and indices must stay exact."""
    beyond = VOID if spec.pad else None
    mask = _decoded("masks", windows, beyond, output_type=types.GRAY)
    if spec.resizes:
        size = [spec.image_size, spec.image_size]
        mask = fn.resize(
            mask,
            size=size,
            # Between two class indices there is no class.
            interp_type=types.INTERP_NN,
            antialias=False,
        )
    if flips is not None:
        mask = fn.flip(mask, horizontal=flips)
    return mask


def _decoded(name: str, windows: tuple[Any, Any] | None, beyond: int | None, **options: Any) -> Any:
    """Decode bytes to pixels, cropped to the window; `beyond` is what is outside the image.

    EXIF orientation is ignored: it would turn an image against its mask.
    """
    encoded = fn.external_source(name=name, dtype=types.UINT8, ndim=1)
    options["adjust_orientation"] = False
    if windows is None:
        return fn.decoders.image(encoded, **options)

    starts, shapes = windows
    if beyond is not None:
        # The decoder's own slices end at the image's edges.
        return fn.slice(
            fn.decoders.image(encoded, **options),
            start=starts,
            shape=shapes,
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=beyond,
        )
    return fn.decoders.image_slice(
        encoded,
        start=starts,
        shape=shapes,
        axes=[0, 1],
        **options,
    )


def _gpu_options(spec: DecodeSpec) -> dict[str, Any]:
    """Return the options of the `mixed` decoder.

    DALI sets `device_memory_padding` aside on the GPU and twice `host_memory_padding` in pinned
    memory, per decoding thread. For images packed at the training size 4 bytes per pixel are
    enough, and the size is known to the hardware decoder too. A larger image only costs a
    reallocation.
    """
    options: dict[str, Any] = {
        "device": "mixed",
        "hw_decoder_load": spec.hardware_decoder_share,
        # As libjpeg-turbo does on the CPU: without it chroma, which is what we learn, is blocky.
        "jpeg_fancy_upsampling": True,
    }
    if spec.resize:
        options["device_memory_padding"] = _PHOTO_PADDING_BYTES
        return options

    padding = max(_MIN_PADDING_BYTES, 4 * spec.image_size**2)
    options["device_memory_padding"] = padding
    options["host_memory_padding"] = padding
    options["preallocate_width_hint"] = spec.image_size
    options["preallocate_height_hint"] = spec.image_size
    return options
