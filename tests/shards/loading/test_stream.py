"""The background thread: its queue holds a whole step, and it ends in every way that it can."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_set import tiny_sample, write_set

from shards.decoding.decoder import DecodedImages, EncodedBatch, Fetched
from shards.decoding.spec import DecodeSpec
from shards.errors import LoadError
from shards.loading import loader as loader_module
from shards.loading import micro_batches
from shards.loading.loader import Loader
from shards.loading.members import Members
from shards.loading.micro_batches import Decoded, Item, Plan
from shards.loading.shard_set import ShardSet, open_shards
from shards.loading.stream import Stream
from shards.order import Draws

LONG_S = 60.0  # for what must happen; the test fails if it does not


class FakeMaker:
    """Makes empty micro-batches at once and counts them."""

    def __init__(self, *_: Any) -> None:
        self.num_made = 0
        self.is_closed = False
        self.changed = threading.Condition()

    def make(self, plans: Iterator[Plan]) -> Iterator[Decoded]:
        for plan in plans:
            with self.changed:
                self.num_made += 1
                self.changed.notify_all()
            position = int(plan.positions[0])
            item = Item(position, 0, position, position, Members(b"", None, None))
            images = DecodedImages(torch.zeros(1), None, None)
            yield Decoded([item], images, None, None)

    def wait_until_made(self, number: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.num_made >= number, LONG_S)

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    samples = [tiny_sample(index) for index in range(64)]
    return open_shards([write_set(tmp_path_factory.mktemp("set"), samples)])


@pytest.mark.parametrize("num_micro_batches", [1, 4, 16, 64])
def test_the_next_step_is_made_while_the_consumer_works_on_this_one(
    shards: ShardSet, num_micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device never waits for a decoder that is faster than it is.

    With a queue of two micro-batches, whatever a step takes, the decoder stops after two of them,
    and the device waits for the rest of each step: 33 % of the time at 64 micro-batches per step
    and a decoder twice as fast (benchmarks/accumulation.py).
    """
    makers: list[FakeMaker] = []

    def fake_maker(*arguments: Any) -> FakeMaker:
        makers.append(FakeMaker(*arguments))
        return makers[-1]

    monkeypatch.setattr(loader_module, "BatchMaker", fake_maker)
    loader = Loader(
        shards,
        image_size=32,
        global_batch_size=num_micro_batches,
        micro_batch_size=1,
        prefetch_batches=1,
    )
    batches = loader.train_batches(0)
    for step in range(1, 4):
        assert len(next(batches)) == num_micro_batches
        assert makers[0].wait_until_made((step + 1) * num_micro_batches)
    loader.close()


def plans(number: int) -> Iterator[Plan]:
    for position in range(number):
        one = np.array([position])
        yield Plan(one, Draws(one, one, one, one))


def fake_stream(maker: Any, number: int, max_ready: int = 2) -> Stream:
    stream = Stream(maker, plans(number), max_ready)
    stream.start()
    return stream


def test_batches_come_in_order_and_the_maker_is_closed() -> None:
    maker = FakeMaker()
    stream = fake_stream(maker, 7)
    positions = []
    while (decoded := stream.next()) is not None:
        positions.append(decoded.items[0].position)

    stream.close()
    assert positions == list(range(7))
    assert maker.is_closed


def test_the_queue_is_bounded() -> None:
    maker = FakeMaker()
    stream = fake_stream(maker, 1000, max_ready=3)
    assert maker.wait_until_made(4)
    for _ in range(5):
        stream.next()
    stream.close()

    # Five taken, three ready, one waiting for room.
    assert maker.num_made <= 5 + 3 + 1
    assert maker.is_closed


def test_an_error_reaches_the_consumer() -> None:
    class Failing(FakeMaker):
        def make(self, plans: Iterator[Plan]) -> Iterator[Decoded]:
            yield from super().make(iter([next(plans)]))
            raise LoadError("too many")

    maker = Failing()
    stream = fake_stream(maker, 7)
    assert stream.next() is not None
    with pytest.raises(LoadError, match="too many"):
        stream.next()
    stream.close()
    assert maker.is_closed


class FakeGpuDecoder:
    """Decodes nothing, on a GPU that is not there."""

    def __init__(self, spec: DecodeSpec, *_: Any) -> None:
        self.number = 0

    def submit(self, batch: EncodedBatch) -> None:
        self.number = len(batch.images)

    def fetch(self) -> Fetched:
        return Fetched([], np.zeros(self.number, np.int32))

    def convert(self, fetched: Fetched) -> DecodedImages:
        return DecodedImages(torch.zeros(len(fetched.flips), 3, 8, 8), None, None)

    def close(self) -> None:
        pass


def test_the_thread_makes_its_gpu_the_current_one(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every rank's thread would make a context on GPU 0, of some 500 MB."""
    made: list[tuple[str, str]] = []

    def set_device(device: Any) -> None:
        made.append((str(device), threading.current_thread().name))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(micro_batches, "Decoder", FakeGpuDecoder)
    sizes = {"image_size": 8, "global_batch_size": 8, "micro_batch_size": 8}
    loader = Loader(shards, **sizes, device="cuda:1")
    next(loader.train_batches(0))
    loader.close()
    assert made == [("cuda:1", "shards-stream")]
