"""Turns plans into decoded micro-batches and replaces the samples that cannot be used.

The three stages overlap: threads read the bytes of the next plans, DALI decodes one batch, and the
batch before it becomes Lab. A sample that cannot be read or decoded is replaced by
`order.replacement`, which does not depend on ranks, threads or time: the batches are the same
wherever and whenever they are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shards.decoding.decoder import (
    DecodedImages,
    DecodeError,
    Decoder,
    EncodedBatch,
    Fetched,
)
from shards.decoding.spec import DecodeSpec
from shards.errors import LoadError
from shards.loading.bad_samples import BadSamples, Replaced
from shards.loading.boxes import Boxes, all_boxes, boxes_in_window
from shards.loading.fetch_ahead import fetched_ahead
from shards.loading.members import BadSampleError, Members, MemberSpec
from shards.loading.read_ahead import PendingReads, ReadAhead
from shards.loading.shard_set import ShardSet
from shards.order import Draws, Fit, crop_windows, fitted_windows, flips, replacement
from shards.storage.shard_files import ReadAt

# Replacements tried for one position: with half of a set bad, a hundred in a row have odds of
# 1e-30.
_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class Plan:
    """One micro-batch to make.

    Attributes:
        positions: Its positions in the stream, int64, shape (B,).
        draws: The samples due at them.
    """

    positions: NDArray[np.int64]
    draws: Draws

    @property
    def ids(self) -> NDArray[np.int64]:
        """Return the samples due."""
        return self.draws.ids


@dataclass(slots=True)
class Item:
    """One position of a micro-batch and the sample that fills it: the planned one or another."""

    position: int
    epoch: int
    planned_id: int
    sample_id: int
    members: Members
    replace_first: int = 0  # replacements come from this sample on ...
    replace_count: int = 0  # ... and are this many
    attempt: int = 0


class Decoded(NamedTuple):
    """A finished micro-batch: its items, their tensors, each image's boxes and its window.

    The windows (y, x, height, width), in pixels of the stored images, are None for whole images.
    """

    items: list[Item]
    images: DecodedImages
    boxes: list[Boxes] | None
    windows_B4: NDArray[np.int32] | None


@dataclass(frozen=True)
class StreamSpec:
    """How to make micro-batches out of plans; see also the arguments of `Loader`.

    Attributes:
        decode: The work of the decoder.
        members: What to read of each sample.
        seed: Of crops, flips and replacements.
        random_crop_min_area: Smallest share of an image's area that a training crop keeps.
        fit: How an image that is not square becomes one.
        training: Replace bad samples and clip boxes; else leave both out and give boxes as
            labelled.
        max_batch_size: Samples in a micro-batch.
        num_threads: Decoding threads.
        num_read_threads: Reading threads.
        read_ahead: Plans whose bytes are read before they are decoded.
        device: Where decoding runs and the tensors end up.
        num_buffers: Output arrays that are used again (shards/decoding/buffers.py).
    """

    decode: DecodeSpec
    members: MemberSpec
    seed: int
    random_crop_min_area: float
    fit: Fit
    training: bool
    max_batch_size: int
    num_threads: int
    num_read_threads: int
    read_ahead: int
    device: str
    num_buffers: int


class BatchMaker:
    """Turns plans into decoded micro-batches; driven by one thread."""

    def __init__(
        self, shards: ShardSet, spec: StreamSpec, bad_samples: BadSamples, read_at: ReadAt
    ) -> None:
        self._shards = shards
        self._spec = spec
        self._bad_samples = bad_samples
        self._reads = ReadAhead(shards, spec.members, spec.num_read_threads, read_at)
        self._decoder = Decoder(
            spec.decode, spec.max_batch_size, spec.num_threads, spec.device, spec.num_buffers
        )
        # Bytes that passed their checksum and do not decode never will, and each try at them costs
        # a rebuilt pipeline: their reasons are kept.
        self._undecodable: dict[int, str] = {}

    def make(self, plans: Iterator[Plan]) -> Iterator[Decoded]:
        """Yield the micro-batches of the plans in order, except those without a usable sample.

        Raises:
            LoadError: Too many samples are bad.
            torch.OutOfMemoryError: The GPU's memory is full.
        """
        # Each thread begins with GPU 0 as its current one, and leaving a stream of another GPU goes
        # back to it: some 500 MB of every rank on the GPU of the first.
        if torch.device(self._spec.device).type == "cuda":
            torch.cuda.set_device(self._spec.device)

        decoding: list[Item] = []
        for items in self._read(plans):
            # Fetched before the next is submitted: the graph's queue holds one batch.
            fetched = self._fetch(decoding)
            # The next batch decodes while this one becomes Lab and is handed over.
            if items:
                self._decoder.submit(self._encoded(items))
            if fetched:
                yield self._finished(decoding, fetched)
            decoding = items

        # The last batch has no successor to push it out.
        if fetched := self._fetch(decoding):
            yield self._finished(decoding, fetched)

    def abort(self) -> None:
        """Make `make` end soon, also while it waits for a read; from any thread."""
        self._reads.abort()

    def close(self) -> None:
        """End the threads of reader and decoder."""
        self._reads.close()
        self._decoder.close()

    def _read(self, plans: Iterator[Plan]) -> Iterator[list[Item]]:
        """Yield each plan's samples as bytes; reads begin some plans ahead."""
        ahead: deque[tuple[Plan, PendingReads]] = deque()
        for plan in fetched_ahead(plans, self._shards):
            ahead.append((plan, self._reads.read(plan.ids)))
            if len(ahead) > self._spec.read_ahead:
                yield self._collect(*ahead.popleft())

        while ahead:
            yield self._collect(*ahead.popleft())

    def _collect(self, plan: Plan, reads: PendingReads) -> list[Item]:
        self._bad_samples.count_drawn(len(plan.ids))

        items = []
        for index, result in enumerate(reads.collect()):
            sample_id = int(plan.ids[index])
            # With the planned sample's id, on which the rule of replacement depends.
            item = Item(
                position=int(plan.positions[index]),
                epoch=int(plan.draws.epochs[index]),
                planned_id=sample_id,
                sample_id=sample_id,
                members=Members(b"", None, None),
                replace_first=int(plan.draws.firsts[index]),
                replace_count=int(plan.draws.counts[index]),
            )
            if self._fill(item, result):
                items.append(item)
        return items

    def _fill(self, item: Item, result: Members | BadSampleError) -> bool:
        """Give the item its bytes or those of a replacement; return False if it is left out."""
        if item.sample_id in self._undecodable:
            return self._replace(item, self._undecodable[item.sample_id])
        if isinstance(result, BadSampleError):
            return self._replace(item, str(result))

        item.members = result
        return True

    def _replace(self, item: Item, reason: str) -> bool:
        """Try the rule's samples in turn until one can be read; return False if it is left out."""
        while item.attempt < _MAX_ATTEMPTS:
            bad_id = item.sample_id
            item.attempt += 1
            # A score over other images than the set's would not be the set's score.
            if not self._spec.training:
                self._bad_samples.add(Replaced(item.position, bad_id, None, reason))
                return False

            item.sample_id = replacement(
                self._spec.seed,
                item.epoch,
                item.planned_id,
                item.attempt,
                item.replace_count,
                item.replace_first,
            )
            self._bad_samples.add(Replaced(item.position, bad_id, item.sample_id, reason))

            if item.sample_id in self._undecodable:
                reason = self._undecodable[item.sample_id]
                continue
            result = self._reads.read(np.array([item.sample_id])).collect()[0]
            if isinstance(result, Members):
                item.members = result
                return True
            reason = str(result)

        raise LoadError(
            f"no usable sample for position {item.position} in {_MAX_ATTEMPTS} tries; the last "
            f"reason: {reason}. Check the shards with python launcher/pack.py --verify DIR."
        )

    def _fetch(self, items: list[Item]) -> Fetched | None:
        """Return the graph's outputs for the submitted items, after replacing undecodable ones."""
        if not items:
            return None
        try:
            return self._decoder.fetch()
        except DecodeError as error:
            first_reason = str(error)

        # The graph does not say which sample failed: each is decoded alone.
        items[:] = [item for item in items if self._decodes(item)]
        if not items:
            return None
        try:
            return self._decoder.decode(self._encoded(items))
        except DecodeError as error:
            raise LoadError(
                f"a batch cannot be decoded although each of its samples can: {error} (first: "
                f"{first_reason})."
            ) from None

    def _decodes(self, item: Item) -> bool:
        """Decode the item alone, replacing it until it decodes; return False if it is left out."""
        while True:
            try:
                self._decoder.decode(self._encoded([item]))
                return True
            except DecodeError as error:
                row = self._shards.rows(np.array([item.sample_id]))[0]
                path = self._shards.shard_paths[row["shard"]]
                reason = f"{path.name}: does not decode ({error})"

            # Remembered by sample, as a later epoch meets it again.
            self._undecodable[item.sample_id] = reason
            if not self._replace(item, reason):
                return False

    def _encoded(self, items: list[Item]) -> EncodedBatch:
        decode = self._spec.decode
        windows = np.empty((len(items), 4), np.int32)
        if decode.crop:
            windows = self._windows(items)
        # Never empty here: a sample without its mask was replaced when it was read.
        masks = [item.members.mask or b"" for item in items] if decode.mask else []
        # Images of the output's size are small; only photos can fill the memory.
        num_pixels = self._num_pixels(items, windows) if decode.resizes else None

        return EncodedBatch(
            images=[item.members.image for item in items],
            windows=windows,
            flips=self._flips(items),
            masks=masks,
            num_pixels=num_pixels,
        )

    def _windows(self, items: list[Item]) -> NDArray[np.int32]:
        """Return each image's window (y, x, height, width) in pixels."""
        sizes_N2 = self._sizes(items)
        windows = crop_windows(
            self._spec.seed,
            _epochs(items),
            _sample_ids(items),
            sizes_N2[:, 0],
            sizes_N2[:, 1],
            self._spec.random_crop_min_area if self._spec.training else 1.0,
        )
        return fitted_windows(windows, self._spec.fit)

    def _num_pixels(self, items: list[Item], windows: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return how many pixels each image has at most in memory, with its padding."""
        stored: NDArray[np.int64] = self._sizes(items).prod(axis=1)
        if self._spec.decode.pad:
            stored = np.maximum(stored, windows[:, 2:].astype(np.int64).prod(axis=1))
        return stored

    def _sizes(self, items: list[Item]) -> NDArray[np.int64]:
        """Return each stored image's height and width in pixels, shape (N, 2)."""
        rows = self._shards.rows(_sample_ids(items))
        return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)

    def _flips(self, items: list[Item]) -> NDArray[np.int32]:
        return flips(self._spec.seed, _epochs(items), _sample_ids(items))

    def _finished(self, items: list[Item], fetched: Fetched) -> Decoded:
        boxes = self._boxes(items) if self._spec.members.boxes else None
        windows = self._windows(items) if self._spec.decode.crop else None
        return Decoded(items, self._decoder.convert(fetched), boxes, windows)

    def _boxes(self, items: list[Item]) -> list[Boxes]:
        """Return each image's boxes, moved as the image was."""
        objects = [item.members.objects for item in items if item.members.objects is not None]
        decode = self._spec.decode
        windows: list[NDArray[np.float64] | None] = [None] * len(items)
        if decode.crop:
            # Windows are (y, x, height, width), so height and width divide them in turn.
            sides_N4 = np.tile(self._sizes(items), 2)
            windows = list(self._windows(items) / sides_N4)

        # What a crop in the middle leaves out is neither looked for nor scored.
        if not self._spec.training and self._spec.fit != "crop":
            return [all_boxes(each, window) for each, window in zip(objects, windows, strict=True)]

        mirrored = self._flips(items).astype(np.bool_) & decode.flip
        return [
            boxes_in_window(each, window, bool(mirror))
            for each, window, mirror in zip(objects, windows, mirrored, strict=True)
        ]


def _epochs(items: list[Item]) -> NDArray[np.int64]:
    return np.array([item.epoch for item in items])


def _sample_ids(items: list[Item]) -> NDArray[np.int64]:
    return np.array([item.sample_id for item in items])
