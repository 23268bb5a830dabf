"""The loader: packed folders in, batches of normalised Lab out, for training and for evaluation.

Training sees one endless stream of samples (shards/order.py) whose only state is the number of
images seen, so a run resumes at any position on any number of ranks. Usage:

    loader = Loader(open_shards([folder]), image_size=256, global_batch_size=64, micro_batch_size=8)
    for micro_batches in loader.train_batches(images_seen):   # this rank's slice of a global batch
        ...

Tensors: B micro-batch, C classes, H = W = image_size;
L' = L / 50 - 1, a' = a / ab_scale, b' = b / ab_scale.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shards.decoding.decoder import wait_on_current_stream
from shards.decoding.spec import DecodeSpec
from shards.errors import ManifestError, OrderError
from shards.loading.bad_samples import BadSamples, Replaced
from shards.loading.boxes import Boxes
from shards.loading.members import MemberSpec
from shards.loading.micro_batches import BatchMaker, Decoded, Item, Plan, StreamSpec
from shards.loading.run_reads import MAX_NODES, RunReads
from shards.loading.shard_set import ShardSet
from shards.loading.stream import Stream
from shards.order import Draws, Fit, MixedOrder, Order, rank_slice
from shards.records import VOID
from shards.storage.retries import READ_RETRIES
from shards.storage.shard_files import ReadAt, ShardFiles

Targets = Literal["none", "classes", "mask", "boxes"]

# Plans whose bytes are read before they are decoded: one is decoded while the next is read.
_READ_AHEAD_PLANS = 2
# Micro-batches outside the queue: one in the consumer's hands, one waiting for room in the queue,
# one being converted.
_NOT_QUEUED = 3


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        lab_B3HW: float32 on the device, planes L', a', b'.
        classes_BC: With targets "classes": float32 multi-hot on the device, difficult objects
            included.
        difficult_BC: With targets "classes": bool on the device, classes that are there only as
            difficult objects.
        mask_BHW: With targets "mask": int64 class indices on the device, 0 background, 255 void.
        stored_masks: In evaluation with targets "mask" on sets packed as `original`: each image's
            mask at its own size, uint8 HW on the CPU; else None.
        boxes: With targets "boxes": each image's objects, on the CPU; else None.
        stored_jpegs: In evaluation: each image's bytes as packed; else None.
        sample_ids_B: int64 on the CPU, the samples really used, as indices into the ShardSet.
        positions_B: int64 on the CPU, positions in the stream (training) or in the set
            (evaluation).
        inside_BHW: In evaluation with targets "mask" of padded images: bool on the CPU, the pixels
            that show the image; else None.
    """

    lab_B3HW: Tensor
    classes_BC: Tensor | None
    difficult_BC: Tensor | None
    mask_BHW: Tensor | None
    stored_masks: list[Tensor] | None
    boxes: list[Boxes] | None
    stored_jpegs: list[bytes] | None
    sample_ids_B: Tensor
    positions_B: Tensor
    inside_BHW: Tensor | None = None


class Loader:
    """Batches of one rank.

    Args:
        shards: `open_shards(...)`.
        image_size: Side of the output images in pixels.
        global_batch_size: Samples of all ranks together in one step.
        micro_batch_size: Samples in one forward pass; the global batch is a multiple of this times
            the number of ranks.
        rank: This rank, from 0.
        world_size: Number of ranks.
        num_nodes: Machines that the ranks run on; it changes how files are read, not the batches.
        seed: Of the order, the crops and the flips.
        weights: Training: each folder's share of the stream, as one positive number per folder;
            empty: every sample of every folder comes once per epoch.
        random_crop_min_area: Smallest share of an image's area that a training crop keeps; 1 = no
            crop.
        flip: Mirror every other training image.
        fit: How an image that is not square becomes one: `squash` it; `crop` the square in its
            middle; `pad` it with grey, void in masks. Labels follow.
        targets: What comes beside the image.
        device: "cpu" or "cuda:N"; where decoding runs and the batches end up.
        num_threads: Decoding threads.
        hardware_decoder_share: GPU only: share of the JPEGs for the hardware decoder, if the GPU
            has one.
        prefetch_batches: Finished micro-batches kept ready; never fewer than a whole step.
        ab_scale: Divisor of a and b.
        max_bad_share: Bad samples allowed, as a share of those drawn so far (a handful is always
            allowed, unless the share is 0).
        read_at: How a file is read, for tests and other storage; None: by `ShardFiles`.
        read_timeout_s: Seconds until a read that does not return counts as failed.
        lab: How Lab is computed on the CPU; see shards/decoding/dali.py.

    Raises:
        OrderError: Sizes that do not divide, or are out of range.
        ManifestError: Targets that the set does not have.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        image_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_nodes: int = 1,
        seed: int = 0,
        weights: Sequence[float] = (),
        random_crop_min_area: float = 1.0,
        flip: bool = False,
        fit: Fit = "squash",
        targets: Targets = "none",
        device: str = "cpu",
        num_threads: int = 1,
        hardware_decoder_share: float = 0.65,
        prefetch_batches: int = 2,
        ab_scale: float = 128.0,
        max_bad_share: float = 0.001,
        read_at: ReadAt | None = None,
        read_timeout_s: float = READ_RETRIES.stall_s,
        lab: Literal["fused", "operators"] = "fused",
    ) -> None:
        self._slice = rank_slice(global_batch_size, micro_batch_size, rank, world_size)
        _check_settings(image_size, random_crop_min_area, num_threads, prefetch_batches)
        _check_targets(shards, targets)

        self.shards = shards
        self.rank = rank
        self.world_size = world_size
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._bad_samples = BadSamples(max_bad_share)
        self._order = _order(shards, seed, weights)

        self._max_ready = queue_length(prefetch_batches, self._slice.num_micro_batches)

        self._files = ShardFiles()
        self._read_at = read_at or _read_at(shards, self._files, self._order.run_samples, num_nodes)
        # A loader that is dropped without `close` must not leave hundreds of files open.
        weakref.finalize(self, self._files.close)
        self._streams: list[Stream] = []
        self._closed_wait_s = 0.0

        decode = DecodeSpec(
            image_size=image_size,
            crop=random_crop_min_area < 1.0 or fit != "squash",
            pad=fit == "pad",
            # Looked up once: a set packed at this size skips the resize, which costs more than Lab.
            resize=not shards.all_are_square(image_size),
            flip=flip,
            mask=targets == "mask",
            num_classes=len(shards.classes),
            ab_scale=ab_scale,
            # The fused kernel is compiled for CPUs.
            lab=lab if device == "cpu" else "operators",
            hardware_decoder_share=hardware_decoder_share,
        )
        self._spec = StreamSpec(
            decode=decode,
            members=_member_spec(shards, targets, read_timeout_s),
            seed=seed,
            random_crop_min_area=random_crop_min_area,
            fit=fit,
            training=True,
            max_batch_size=micro_batch_size,
            num_threads=num_threads,
            # Reads wait for storage, not for cores: there may be more than decoding threads.
            num_read_threads=max(2, min(8, 2 * num_threads)),
            read_ahead=_READ_AHEAD_PLANS,
            device=device,
            num_buffers=self._max_ready + self._slice.num_micro_batches + _NOT_QUEUED,
        )

    @property
    def decode_spec(self) -> DecodeSpec:
        """Return what the decoder is asked to do in training."""
        return self._spec.decode

    @property
    def replaced(self) -> list[Replaced]:
        """Return the samples that could not be used so far, in the order they were met."""
        return self._bad_samples.replaced

    @property
    def wait_s(self) -> float:
        """Return the seconds that the consumer has waited for batches so far."""
        return self._closed_wait_s + sum(stream.wait_s for stream in self._streams)

    def train_batches(self, images_seen: int) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of one global batch after another, without end.

        Starts in constant time at any position. Every sample comes once per epoch, except bad ones
        (with weights: once per epoch of its own folder); a global batch may cross an epoch's edge.

        Args:
            images_seen: Samples that all ranks together have been trained on.

        Raises:
            OrderError: Fewer samples than a global batch takes, or a negative position.
            LoadError: Too many samples are bad (while iterating).
        """
        # Here, not in the generator, which would raise only when the first batch is asked for.
        if self.shards.num_samples < self._global_batch_size or images_seen < 0:
            raise OrderError(
                f"a global batch of {self._global_batch_size} from position {images_seen} of a set "
                f"of {self.shards.num_samples} samples: the set must hold at least one batch, and "
                "positions start at 0; use a smaller global_batch_size or more data."
            )
        return self._train_batches(images_seen)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches of one pass over the set: whole images, no flip.

        Samples come in the set's own order. Rank r of R takes micro-batches r, r + R, ...; the last
        one may be short, and ranks may have unequal numbers. A bad sample is left out and listed in
        `replaced`; nothing takes its place.

        Raises:
            LoadError: Too many samples are bad.
        """
        spec = self._spec
        decode = replace(spec.decode, crop=spec.fit != "squash", flip=False)
        # Only `original` keeps masks at the photos' own size; elsewhere the stored mask is the
        # resized one.
        own_size = spec.members.mask and set(self.shards.image_policies) == {"original"}

        spec = replace(spec, decode=decode, training=False)
        for decoded in self._run(spec, self._eval_plans()):
            batch = self._batch(decoded)
            batch.stored_jpegs = [item.members.image for item in decoded.items]
            if own_size:
                masks = [_stored_mask(item.members.mask or b"") for item in decoded.items]
                batch.stored_masks = _in_windows(masks, decoded.windows_B4)
            if spec.members.mask and decode.pad:
                batch.inside_BHW = self._inside(decoded)
            yield batch

    def _inside(self, decoded: Decoded) -> Tensor:
        """Return which pixels of the outputs lie within their images, bool B x S x S."""
        ids = np.array([item.sample_id for item in decoded.items])
        rows = self.shards.rows(ids)
        middles_S = (np.arange(self._spec.decode.image_size) + 0.5) / self._spec.decode.image_size

        windows_B4 = np.asarray(decoded.windows_B4)
        y_BS = windows_B4[:, :1] + middles_S * windows_B4[:, 2:3]
        x_BS = windows_B4[:, 1:2] + middles_S * windows_B4[:, 3:]
        in_y_BS = (y_BS > 0) & (y_BS < rows["height"][:, None])
        in_x_BS = (x_BS > 0) & (x_BS < rows["width"][:, None])
        return torch.from_numpy(in_y_BS[:, :, None] & in_x_BS[:, None, :])

    def close(self) -> None:
        """Stop the threads and close the files. The loader can be used again."""
        # A copy: a stream that ends takes itself off the list.
        for stream in list(self._streams):
            stream.close()
        self._files.close()

    def _train_batches(self, images_seen: int) -> Iterator[list[Batch]]:
        micro_batches: list[Batch] = []
        for decoded in self._run(self._spec, self._train_plans(images_seen)):
            micro_batches.append(self._batch(decoded))
            if len(micro_batches) == self._slice.num_micro_batches:
                yield micro_batches
                micro_batches = []

    def _train_plans(self, images_seen: int) -> Iterator[Plan]:
        size = self._micro_batch_size
        for step in count():
            # Nothing but arithmetic on the position: that is what lets a run resume anywhere.
            first = images_seen + step * self._global_batch_size + self._slice.offset
            for index in range(self._slice.num_micro_batches):
                begin = first + index * size
                yield Plan(np.arange(begin, begin + size), self._order.draws(begin, size))

    def _eval_plans(self) -> Iterator[Plan]:
        size, number = self._micro_batch_size, self.shards.num_samples
        for begin in range(self.rank * size, number, self.world_size * size):
            positions = np.arange(begin, min(begin + size, number))
            # Epoch 0 throughout: an evaluation draws no crop and no flip from it.
            zeros = np.zeros_like(positions)
            yield Plan(positions, Draws(positions, zeros, zeros, np.full_like(zeros, number)))

    def _run(self, spec: StreamSpec, plans: Iterator[Plan]) -> Iterator[Decoded]:
        maker = BatchMaker(self.shards, spec, self._bad_samples, self._read_at)
        stream = Stream(maker, plans, self._max_ready)
        # Before it starts: a `close` in another thread that misses it would leave it running.
        self._streams.append(stream)

        try:
            stream.start()
            while (decoded := stream.next()) is not None:
                yield decoded
        finally:
            stream.close()
            self._streams.remove(stream)
            # Kept for `wait_s`, which counts over streams that are gone.
            self._closed_wait_s += stream.wait_s

    def _batch(self, decoded: Decoded) -> Batch:
        items, images = decoded.items, decoded.images
        # The decoder works on a CUDA stream of its own and may not have finished.
        wait_on_current_stream(images)
        batch = Batch(
            lab_B3HW=images.lab_B3HW,
            classes_BC=None,
            difficult_BC=None,
            mask_BHW=images.mask_BHW,
            stored_masks=None,
            boxes=decoded.boxes,
            stored_jpegs=None,
            sample_ids_B=torch.tensor([item.sample_id for item in items]),
            positions_B=torch.tensor([item.position for item in items]),
        )

        if self._spec.members.classes is not None and not self._spec.members.boxes:
            self._add_classes(batch, items)

        return batch

    def _add_classes(self, batch: Batch, items: list[Item]) -> None:
        labels = [item.members.label for item in items if item.members.label is not None]
        present_BC = np.stack([label.present for label in labels])
        difficult_BC = np.stack([label.difficult for label in labels])
        batch.classes_BC = _on_device(torch.from_numpy(present_BC), self._spec.device)
        batch.difficult_BC = _on_device(torch.from_numpy(difficult_BC), self._spec.device)


def _order(shards: ShardSet, seed: int, weights: Sequence[float]) -> Order | MixedOrder:
    if not weights:
        return Order(shards.shard_sizes, seed)

    # By folder: shares are given per folder, and each keeps its own epochs.
    sizes = [[shard.samples for shard in manifest.shards] for manifest in shards.manifests]
    return MixedOrder(sizes, weights, seed)


def queue_length(prefetch_batches: int, num_micro_batches: int) -> int:
    """Return how many finished micro-batches are kept ready.

    While the consumer works on one step, the whole next step must fit: in a shorter queue the
    decoder stops in the middle of it, and the device waits for the rest of every step.
    """
    return max(prefetch_batches, num_micro_batches + 1)


def _read_at(shards: ShardSet, files: ShardFiles, run_samples: int, num_nodes: int) -> ReadAt:
    """Choose how files are read: large sets with page-cache hints, unless too many nodes share."""
    # Blocks of one sample have no rest to prefetch.
    if run_samples > 1 and num_nodes <= MAX_NODES:
        return RunReads(shards, run_samples, files).read_at
    return files.read_at


def _on_device(tensor: Tensor, device: str) -> Tensor:
    """Copy a tensor to the device; from pinned memory, so that the host does not wait for it."""
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _stored_mask(png: bytes) -> Tensor:
    """Decode a mask at its own size; its checksum, size and indices have been checked."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)), np.uint8))


def _in_windows(masks: list[Tensor], windows_B4: NDArray[np.int32] | None) -> list[Tensor]:
    """Return the masks as seen through their windows, with void beyond their edges."""
    if windows_B4 is None:
        return masks

    seen = []
    for mask_HW, (top, left, height, width) in zip(masks, windows_B4.tolist(), strict=True):
        canvas_HW = mask_HW.new_full((height, width), VOID)
        part_HW = mask_HW[max(top, 0) : top + height, max(left, 0) : left + width]
        y, x = max(-top, 0), max(-left, 0)
        canvas_HW[y : y + part_HW.shape[0], x : x + part_HW.shape[1]] = part_HW
        seen.append(canvas_HW)
    return seen


def _member_spec(shards: ShardSet, targets: Targets, read_timeout_s: float) -> MemberSpec:
    labelled = targets in ("classes", "boxes")
    return MemberSpec(
        classes=shards.classes if labelled else None,
        boxes=targets == "boxes",
        mask=targets == "mask",
        retry=replace(READ_RETRIES, stall_s=read_timeout_s),
    )


def _check_settings(
    image_size: int, random_crop_min_area: float, num_threads: int, prefetch_batches: int
) -> None:
    if min(image_size, num_threads, prefetch_batches) < 1 or not 0.0 < random_crop_min_area <= 1.0:
        raise OrderError(
            f"image_size {image_size}, random_crop_min_area {random_crop_min_area}, num_threads "
            f"{num_threads}, prefetch_batches {prefetch_batches}: random_crop_min_area must be in "
            "(0, 1], the others at least 1."
        )


def _check_targets(shards: ShardSet, targets: Targets) -> None:
    names = ", ".join(str(manifest.folder) for manifest in shards.manifests)

    if targets != "none" and (not shards.classes or not shards.same_classes()):
        raise ManifestError(
            f"{names}: no classes, or not the same ones in all folders, but the task needs "
            f"{targets}; pack a labelled corpus, or give folders of one corpus only."
        )
    if targets == "boxes" and any(manifest.is_indexed for manifest in shards.manifests):
        raise ManifestError(
            f"{names}: shards made elsewhere have no boxes, but the task needs boxes; pack the "
            "corpus."
        )
    if targets == "mask" and not shards.has_masks:
        raise ManifestError(
            f"{names}: packed without masks, but the task needs masks; pack a split with masks."
        )
