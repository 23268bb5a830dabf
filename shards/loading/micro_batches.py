"""Plans to decoded micro-batches; bad samples replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shards.decoding.dali import DecodeError, Decoder, DecodeSpec, EncodedBatch, Fetched
from shards.errors import LoadError
from shards.loading.bad_samples import BadSamples, Replaced
from shards.loading.boxes import Boxes, all_boxes, boxes_in_window
from shards.loading.fetch_ahead import fetched_ahead
from shards.loading.members import BadSampleError, Members, MemberSpec
from shards.loading.read_ahead import PendingReads, ReadAhead
from shards.loading.shard_set import ShardSet
from shards.order import crop_windows, flips, replacement
from shards.storage.shard_files import ReadAt

_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class Plan:
    """One micro-batch to make: its positions, the epoch of each, and the samples due there, all (B,)."""

    positions: NDArray[np.int64]
    epochs: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(slots=True)
class Item:
    """One place in a micro-batch and the sample that fills it (the planned one, or its replacement)."""

    position: int
    epoch: int
    planned_id: int
    sample_id: int
    members: Members
    attempt: int = 0


class Decoded(NamedTuple):
    """A finished micro-batch: items, lab_B3HW, mask_BHW, and each picture's boxes."""

    items: list[Item]
    lab_B3HW: Tensor
    mask_BHW: Tensor | None
    boxes: list[Boxes] | None


@dataclass(frozen=True)
class StreamSpec:
    """How to make micro-batches out of plans; see the arguments of `Loader`.

    In training bad samples are replaced and boxes clipped; in evaluation the former are left out, the latter as
    labelled.
    """

    decode: DecodeSpec
    wanted: MemberSpec
    seed: int
    random_crop_min_area: float
    training: bool
    max_batch_size: int
    num_threads: int
    num_read_threads: int
    read_ahead: int
    device: str


class BatchMaker:
    """Turns plans into decoded micro-batches; driven by one thread."""

    def __init__(
        self, shards: ShardSet, spec: StreamSpec, faults: BadSamples, read_at: ReadAt
    ) -> None:
        self._shards, self._spec, self._faults = shards, spec, faults
        self._reads = ReadAhead(shards, spec.wanted, spec.num_read_threads, read_at)
        self._decoder = Decoder(spec.decode, spec.max_batch_size, spec.num_threads, spec.device)
        # Bytes that passed their checksum and do not decode never will: each would cost a rebuilt pipeline.
        self._undecodable: dict[int, str] = {}

    def make(self, plans: Iterator[Plan]) -> Iterator[Decoded]:
        """The micro-batches of the plans, in order; one without any usable sample is left out.

        Raises:
            LoadError: Too many samples are bad.
        """
        decoding: list[Item] = []
        for items in self._read(plans):
            fetched = self._fetch(decoding)
            if items:
                self._decoder.submit(self._encoded(items))
            if fetched:
                yield self._finished(decoding, fetched)
            decoding = items
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
        """Each plan's samples as bytes, with reads begun some plans ahead."""
        ahead: deque[tuple[Plan, PendingReads]] = deque()
        for plan in fetched_ahead(plans, self._shards):
            ahead.append((plan, self._reads.read(plan.ids)))
            if len(ahead) > self._spec.read_ahead:
                yield self._collect(*ahead.popleft())
        while ahead:
            yield self._collect(*ahead.popleft())

    def _collect(self, plan: Plan, reads: PendingReads) -> list[Item]:
        self._faults.count_drawn(len(plan.ids))
        items = []
        for position, epoch, sample_id, result in zip(
            plan.positions.tolist(),
            plan.epochs.tolist(),
            plan.ids.tolist(),
            reads.collect(),
            strict=True,
        ):
            item = Item(position, epoch, sample_id, sample_id, Members(b"", None, None))
            if self._fill(item, result):
                items.append(item)
        return items

    def _fill(self, item: Item, result: Members | BadSampleError) -> bool:
        """Put what was read into the item, or what stands in for it; False where it is left out."""
        if isinstance(result, Members) and item.sample_id not in self._undecodable:
            item.members = result
            return True
        reason = self._undecodable.get(item.sample_id, str(result))
        return self._replace(item, reason)

    def _replace(self, item: Item, reason: str) -> bool:
        """Try the rule's samples one after the other until one can be read; False where it is left out."""
        while item.attempt < _MAX_ATTEMPTS:
            bad, item.attempt = item.sample_id, item.attempt + 1
            if not self._spec.training:
                self._faults.add(Replaced(item.position, bad, None, reason))
                return False
            item.sample_id = replacement(
                self._spec.seed, item.epoch, item.planned_id, item.attempt, self._shards.num_samples
            )
            self._faults.add(Replaced(item.position, bad, item.sample_id, reason))
            if item.sample_id in self._undecodable:
                reason = self._undecodable[item.sample_id]
                continue
            result = self._reads.read(np.array([item.sample_id])).collect()[0]
            if isinstance(result, Members):
                item.members = result
                return True
            reason = str(result)
        raise LoadError(
            f"no usable sample found in {_MAX_ATTEMPTS} tries for position {item.position}; the last reason: "
            f"{reason}. Check the shards with python launcher/pack.py --verify DIR."
        )

    def _fetch(self, items: list[Item]) -> Fetched | None:
        """The graph's outputs for the submitted items, which lose or change those that do not decode."""
        if not items:
            return None
        try:
            return self._decoder.fetch()
        except DecodeError as error:
            reason = str(error)
        items[:] = [item for item in items if self._decodes(item)]
        if not items:
            return None
        try:
            return self._decoder.decode(self._encoded(items))
        except DecodeError as error:
            raise LoadError(
                f"a batch cannot be decoded though each of its samples can: {error} (at first: {reason})."
            ) from None

    def _decodes(self, item: Item) -> bool:
        """Decode the item alone, replacing it until it does; False where it is left out."""
        while True:
            try:
                self._decoder.decode(self._encoded([item]))
                return True
            except DecodeError as error:
                path = self._shards.shard_paths[
                    self._shards.rows(np.array([item.sample_id]))["shard"][0]
                ]
                reason = f"{path.name}: does not decode ({error})"
            self._undecodable[item.sample_id] = reason
            if not self._replace(item, reason):
                return False

    def _encoded(self, items: list[Item]) -> EncodedBatch:
        spec = self._spec
        windows = (
            self._windows(items)[0] if spec.decode.crop else np.empty((len(items), 4), np.int32)
        )
        return EncodedBatch(
            images=[item.members.image for item in items],
            windows=windows,
            flips=self._flips(items),
            masks=[item.members.mask or b"" for item in items] if spec.decode.mask else (),
        )

    def _windows(self, items: list[Item]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What is cut out of each picture: (y, x, height, width), in pixels and as shares of the picture."""
        rows = self._shards.rows(np.array([item.sample_id for item in items]))
        heights, widths = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        epochs, ids = _epochs_and_ids(items)
        windows = crop_windows(
            self._spec.seed, epochs, ids, heights, widths, self._spec.random_crop_min_area
        )
        return windows, windows / np.stack([heights, widths, heights, widths], axis=1)

    def _flips(self, items: list[Item]) -> NDArray[np.int32]:
        return flips(self._spec.seed, *_epochs_and_ids(items))

    def _finished(self, items: list[Item], fetched: Fetched) -> Decoded:
        """The tensors, and the boxes moved as their pictures were."""
        lab_B3HW, mask_BHW = self._decoder.convert(fetched)
        objects = [item.members.objects for item in items if item.members.objects is not None]
        if not self._spec.wanted.boxes:
            return Decoded(items, lab_B3HW, mask_BHW, None)
        if not self._spec.training:
            return Decoded(items, lab_B3HW, mask_BHW, [all_boxes(each) for each in objects])
        decode = self._spec.decode
        windows = self._windows(items)[1] if decode.crop else [None] * len(items)
        mirrored = self._flips(items).astype(bool) & decode.flip
        moved = zip(objects, windows, mirrored.tolist(), strict=True)
        return Decoded(items, lab_B3HW, mask_BHW, [boxes_in_window(*each) for each in moved])


def _epochs_and_ids(items: list[Item]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([item.epoch for item in items]), np.array([item.sample_id for item in items])
