"""The loader: packed folders in, batches of normalised Lab out, for training and for evaluation.

Training sees one endless stream of samples (shards/order.py) whose only state is the number of images seen,
so a run is taken up at any position on any number of ranks. Usage:

    loader = Loader(open_shards([folder]), image_size=256, global_batch_size=64, micro_batch_size=8)
    for micro_batches in loader.train_batches(images_seen):   # this rank's part of one global batch
        ...

Tensors: B micro-batch, C classes, H = W = image_size; L' = L / 50 - 1, a' = a / ab_scale, b' = b / ab_scale.
"""

import io
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.decoding.dali import DecodeSpec
from shards.errors import ManifestError, OrderError
from shards.loading.bad_samples import BadSamples, Replaced
from shards.loading.boxes import Boxes
from shards.loading.members import MemberSpec
from shards.loading.micro_batches import BatchMaker, Decoded, Plan, StreamSpec
from shards.loading.run_reads import MAX_NODES, RunReads
from shards.loading.shard_set import ShardSet
from shards.loading.stream import Stream
from shards.order import Order, rank_slice
from shards.storage.shard_files import ReadAt, ShardFiles

Targets = Literal["none", "classes", "mask", "boxes"]


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        lab_B3HW: float32 on the device, planes L', a', b'.
        classes_BC: With targets "classes": float32 multi-hot on the device, difficult objects included.
        difficult_BC: With targets "classes": bool, classes that are there only as difficult objects.
        mask_BHW: With targets "mask": int64 class indices on the device, 0 background, 255 void.
        stored_masks: Evaluation with targets "mask" on sets packed as `original`: each picture's mask at its own
            size, uint8 HW on the CPU; else None.
        stored_jpegs: Evaluation: each picture as it lies in its shard; else None.
        boxes: With targets "boxes": each picture's objects, on the CPU (shards/loading/boxes.py); else None.
        sample_ids_B: int64 on the CPU, the samples really used, as indices into the ShardSet.
        slots_B: int64 on the CPU, positions in the stream (training) or in the set (evaluation).
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


class Loader:
    """Batches of one rank.

    Args:
        shards: `open_shards(...)`.
        image_size: Side of the pictures that come out, in pixels.
        global_batch_size: Samples of all ranks together in one step.
        micro_batch_size: Samples in one forward pass; the global batch is a multiple of this times the ranks.
        rank: This rank, from 0.
        world_size: Number of ranks.
        num_nodes: Machines that the ranks run on; it changes how files are read, not what comes out.
        seed: Of the order, the crops and the flips.
        random_crop_scale: Smallest share of a picture's area that a training crop keeps; 1.0 = no crop.
        flip: Mirror every other training picture.
        targets: What comes beside the picture.
        device: "cpu" or "cuda:N"; where decoding runs and the batches lie.
        num_threads: Decoding threads; the cores that this rank has.
        hardware_decoder_share: GPU only: share of the JPEGs for the hardware decoder, where the GPU has one.
        prefetch_batches: Finished micro-batches kept ready.
        ab_scale: What a and b are divided by.
        max_bad_share: Bad samples allowed, as a share of those drawn so far (a handful is always allowed,
            unless the share is 0).
        read_at: How a file is read, for tests and for other storage; None: by `ShardFiles`, large sets by runs.
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
        random_crop_min_area: float = 1.0,
        flip: bool = False,
        targets: Targets = "none",
        device: str = "cpu",
        num_threads: int = 1,
        hardware_decoder_share: float = 0.65,
        prefetch_batches: int = 2,
        ab_scale: float = 128.0,
        max_bad_share: float = 0.001,
        read_at: ReadAt | None = None,
        read_timeout_s: float = 60.0,
        lab: Literal["fused", "operators"] = "fused",
    ) -> None:
        self._share = rank_slice(global_batch_size, micro_batch_size, rank, world_size)
        _check_settings(image_size, random_crop_min_area, num_threads, prefetch_batches)
        _check_targets(shards, targets)
        self.shards, self.rank, self.world_size = shards, rank, world_size
        self._global_batch_size, self._micro_batch_size = global_batch_size, micro_batch_size
        self._prefetch_batches = prefetch_batches
        self._faults = BadSamples(max_bad_share)
        self._order = Order(shards.shard_sizes, seed)
        self._files = ShardFiles()
        self._read_at = read_at or _read_at(shards, self._files, self._order.run_samples, num_nodes)
        self._streams: list[Stream] = []
        self._closed_wait_s = 0.0
        weakref.finalize(self, self._files.close)
        decode = _decode_spec(shards, image_size, random_crop_min_area, targets)
        self._spec = StreamSpec(
            decode=replace(
                decode,
                flip=flip,
                ab_scale=ab_scale,
                lab=lab if device == "cpu" else "operators",
                hardware_decoder_load=hardware_decoder_share,
            ),
            wanted=replace(_wanted(shards, targets), timeout_s=read_timeout_s),
            seed=seed,
            random_crop_min_area=random_crop_min_area,
            training=True,
            max_batch_size=micro_batch_size,
            num_threads=num_threads,
            num_read_threads=max(2, min(8, 2 * num_threads)),
            read_ahead=2,
            device=device,
        )

    @property
    def replaced(self) -> list[Replaced]:
        """The samples that could not be used so far, in the order in which they were met."""
        return list(self._faults.replaced)

    @property
    def num_drawn(self) -> int:
        """Samples asked for so far, bad ones included; it runs ahead of what the consumer has seen."""
        return self._faults.num_drawn

    @property
    def wait_s(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return self._closed_wait_s + sum(stream.wait_s for stream in self._streams)

    def train_batches(self, images_seen: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of one global batch after the other, without end.

        Starts in constant time at any position. Every sample comes once an epoch, but for bad ones; a global
        batch may reach over an epoch's edge.

        Args:
            images_seen: Samples that all ranks together have been trained on.

        Raises:
            OrderError: Fewer samples than a global batch takes, or a negative position.
            LoadError: Too many samples are bad (while iterating).
        """
        if self.shards.num_samples < self._global_batch_size or images_seen < 0:
            raise OrderError(
                f"a global batch of {self._global_batch_size} from position {images_seen} of a set of "
                f"{self.shards.num_samples} samples: the set must hold a batch at least, and positions start "
                "at 0; take a smaller global_batch_size or more data."
            )
        return self._train_batches(images_seen)

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's micro-batches of one pass over the set, in its own order: whole pictures, no flip.

        Rank r of R takes micro-batches r, r + R, ...; the last one may be short, and ranks may have unequal
        numbers. A bad sample is left out and stands in `replaced`; nothing takes its place.

        Raises:
            LoadError: Too many samples are bad.
        """
        spec = self._spec
        decode = replace(spec.decode, crop=False, flip=False)
        own_size = spec.wanted.mask and set(self.shards.image_policies) == {"original"}
        for decoded in self._run(replace(spec, decode=decode, training=False), self._eval_plans()):
            batch = self._batch(decoded)
            batch.stored_jpegs = [item.members.image for item in decoded.items]
            if own_size:
                batch.stored_masks = [
                    _stored_mask(item.members.mask or b"") for item in decoded.items
                ]
            yield batch

    def close(self) -> None:
        """Stop the threads and close the files. The loader can be used again."""
        for stream in list(self._streams):
            stream.close()
        self._files.close()

    def _train_batches(self, images_seen: int) -> Iterator[list[Batch]]:
        number = self._share.num_micro_batches
        micro_batches = []
        for decoded in self._run(self._spec, self._train_plans(images_seen)):
            micro_batches.append(self._batch(decoded))
            if len(micro_batches) == number:
                yield micro_batches
                micro_batches = []

    def _train_plans(self, images_seen: int) -> Iterator[Plan]:
        size = self._micro_batch_size
        for step in count():
            first = images_seen + step * self._global_batch_size + self._share.offset
            for begin in range(first, first + self._share.num_micro_batches * size, size):
                positions = np.arange(begin, begin + size)
                yield Plan(
                    positions,
                    positions // self.shards.num_samples,
                    self._order.sample_ids(begin, size),
                )

    def _eval_plans(self) -> Iterator[Plan]:
        size, number = self._micro_batch_size, self.shards.num_samples
        for begin in range(self.rank * size, number, self.world_size * size):
            positions = np.arange(begin, min(begin + size, number))
            yield Plan(positions, np.zeros_like(positions), positions)

    def _run(self, spec: StreamSpec, plans: Iterator[Plan]) -> Iterator[Decoded]:
        maker = BatchMaker(self.shards, spec, self._faults, self._read_at)
        stream = Stream(maker, plans, self._prefetch_batches)
        self._streams.append(stream)
        try:
            while (decoded := stream.next()) is not None:
                yield decoded
        finally:
            stream.close()
            self._streams.remove(stream)
            self._closed_wait_s += stream.wait_s

    def _batch(self, decoded: Decoded) -> Batch:
        items = decoded.items
        classes_BC = difficult_BC = None
        if self._spec.wanted.num_classes is not None and not self._spec.wanted.boxes:
            labels = [item.members.label for item in items if item.members.label is not None]
            classes_BC = torch.from_numpy(np.stack([label.present for label in labels])).to(
                self._spec.device
            )
            difficult_BC = torch.from_numpy(np.stack([label.difficult for label in labels])).to(
                self._spec.device
            )
        return Batch(
            lab_B3HW=decoded.lab_B3HW,
            classes_BC=classes_BC,
            difficult_BC=difficult_BC,
            mask_BHW=decoded.mask_BHW,
            stored_masks=None,
            boxes=decoded.boxes,
            stored_jpegs=None,
            sample_ids_B=torch.tensor([item.sample_id for item in items]),
            positions_B=torch.tensor([item.position for item in items]),
        )


def _read_at(shards: ShardSet, files: ShardFiles, run_samples: int, num_nodes: int) -> ReadAt:
    by_runs = run_samples > 1 and num_nodes <= MAX_NODES
    return RunReads(shards, run_samples, files).read_at if by_runs else files.read_at


def _stored_mask(png: bytes) -> Tensor:
    """The mask as it was packed; the reader has checked its sum and size, the decoder its indices."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)), np.uint8))


def _decode_spec(
    shards: ShardSet, image_size: int, crop_scale: float, targets: Targets
) -> DecodeSpec:
    return DecodeSpec(
        image_size=image_size,
        crop=crop_scale < 1.0,
        resize=any(policy != f"squash:{image_size}" for policy in shards.image_policies),
        mask=targets == "mask",
        num_classes=len(shards.classes),
    )


def _wanted(shards: ShardSet, targets: Targets) -> MemberSpec:
    labelled = targets in ("classes", "boxes")
    return MemberSpec(
        num_classes=len(shards.classes) if labelled else None,
        boxes=targets == "boxes",
        mask=targets == "mask",
    )


def _check_settings(
    image_size: int, crop_scale: float, num_threads: int, prefetch_batches: int
) -> None:
    if image_size < 1 or not 0.0 < crop_scale <= 1.0 or num_threads < 1 or prefetch_batches < 1:
        raise OrderError(
            f"image_size {image_size}, random_crop_scale {crop_scale}, num_threads {num_threads}, "
            f"prefetch_batches {prefetch_batches}: the crop scale lies in (0, 1], the others are 1 at least."
        )


def _check_targets(shards: ShardSet, targets: Targets) -> None:
    names = ", ".join(str(manifest.folder) for manifest in shards.manifests)
    if targets != "none" and (not shards.classes or not shards.same_classes()):
        raise ManifestError(
            f"{names}: no classes, or not the same ones in all folders, but {targets} are asked for; pack a "
            "labelled corpus, or give folders of one corpus only."
        )
    if targets == "mask" and not shards.has_masks:
        raise ManifestError(
            f"{names}: packed without masks, but masks are asked for; pack a split with masks."
        )
