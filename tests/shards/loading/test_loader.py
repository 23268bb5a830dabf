"""The loader: the same batches on any ranks and threads, from any position, despite damage."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_set import TinySample, png, tiny_sample, without_quantization, write_set

from shards.errors import LoadError, ManifestError, OrderError
from shards.loading.loader import Batch, Loader
from shards.loading.shard_set import open_shards
from shards.loading.stream import Stream
from shards.order import MixedOrder, Order, replacement
from shards.storage.shard_files import ShardFiles

NUM_SAMPLES = 50
LONG_S = 60.0  # for what must happen; the test fails if it does not
SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "global_batch_size": 24,
    "micro_batch_size": 4,
    "seed": 3,
}


@pytest.fixture(scope="module")
def samples() -> list[TinySample]:
    return [tiny_sample(index) for index in range(NUM_SAMPLES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples: list[TinySample]) -> Path:
    return write_set(
        tmp_path_factory.mktemp("tiny"),
        samples,
    )


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, samples: list[TinySample]) -> Path:
    """Damage: garbage with valid checksums (7 fails only in the decoder), masks, a label."""
    bad = list(samples)
    bad[7] = replace(
        bad[7],
        image=without_quantization(bad[7].image),
    )
    bad[20] = replace(bad[20], image=b"garbage")
    bad[31] = replace(bad[31], mask=b"")
    bad[33] = replace(
        bad[33],
        mask=png(np.full((32, 32), 4, np.uint8)),
    )  # of 3 classes
    bad[40] = replace(bad[40], label=b"{}")
    folder = write_set(
        tmp_path_factory.mktemp("damaged"),
        bad,
    )
    shards = open_shards([folder])
    row = shards.rows(np.array([12]))[0]
    path = shards.shard_paths[row["shard"]]
    data = bytearray(path.read_bytes())
    data[int(row["image_offset"]) + 200] ^= 1
    path.write_bytes(data)

    return folder


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("shards"):
            thread.join(LONG_S)
            assert not thread.is_alive(), f"{thread.name} is left behind"


def train(
    folder: Path, images_seen: int, steps: int, world: int = 1, **settings: Any
) -> list[list[Batch]]:
    """Return a run's steps on `world` ranks: each global batch's micro-batches in order."""
    shards = open_shards([folder])
    arguments = SETTINGS | settings
    loaders = [Loader(shards, rank=rank, world_size=world, **arguments) for rank in range(world)]
    ranks = [list(islice(loader.train_batches(images_seen), steps)) for loader in loaders]
    for loader in loaders:
        loader.close()
    return [[batch for rank in ranks for batch in rank[step]] for step in range(steps)]


def ids(steps: list[list[Batch]]) -> list[int]:
    return [i for step in steps for batch in step for i in batch.sample_ids_B.tolist()]


def assert_same(
    ours: list[list[Batch]],
    theirs: list[list[Batch]],
) -> None:
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        for name, value in vars(one).items():
            expected = getattr(other, name)
            assert (value is None and expected is None) or torch.equal(value, expected), name


def test_an_epoch_holds_every_sample_once(folder: Path) -> None:
    steps = train(folder, 0, 25)
    seen = ids(steps)
    for epoch in range(12):
        part = seen[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES]
        assert sorted(part) == list(range(NUM_SAMPLES))

    positions = [
        position for step in steps for batch in step for position in batch.positions_B.tolist()
    ]

    assert positions == list(range(25 * 24))


@pytest.mark.parametrize("targets", ["none", "classes", "mask"])
def test_batches_are_equal_bit_for_bit_on_any_ranks_and_threads(folder: Path, targets: str) -> None:
    settings: dict[str, Any] = {
        "targets": targets,
        "random_crop_min_area": 0.4,
        "flip": True,
    }
    one = train(folder, 7, 4, **settings)
    assert_same(
        one,
        train(folder, 7, 4, world=2, num_threads=2, **settings),
    )
    assert_same(
        one,
        train(folder, 7, 4, world=6, prefetch_batches=1, **settings),
    )
    first = one[0][0]

    assert first.lab_B3HW.shape == (4, 3, 32, 32)
    assert first.lab_B3HW.dtype == torch.float32
    assert (first.classes_BC is not None) == (targets == "classes")
    assert (first.mask_BHW is not None) == (targets == "mask")


def test_resume_at_any_point_on_other_ranks(folder: Path) -> None:
    """Twice within an epoch, at its edge, inside the batch across it: 2 -> 1 -> 3 ranks."""
    whole = train(folder, 0, 7, flip=True)
    for first, second in [(1, 2), (2, 3), (2, 6)]:
        legs = [
            (0, first, 2),
            (first, second, 1),
            (second, 7, 3),
        ]
        parts = [
            step
            for begin, end, world in legs
            for step in train(folder, begin * 24, end - begin, world=world, flip=True)
        ]
        assert_same(whole, parts)

    edge = train(folder, NUM_SAMPLES, 1)  # no multiple of the batch

    assert (
        ids(edge)
        == Order([8] * 6 + [2], 3)
        .sample_ids(
            NUM_SAMPLES,
            24,
        )
        .tolist()
    )


def test_folders_are_mixed_by_weight_on_any_ranks_from_any_position(
    folder: Path, tmp_path: Path, samples: list[TinySample]
) -> None:
    """A folder of 9 has half of the stream beside one of 50; its bad samples are replaced in it."""
    few = [
        replace(samples[3], image=b"garbage"),
        *samples[4:12],
    ]
    small = write_set(tmp_path / "small", few)
    settings: dict[str, Any] = SETTINGS | {
        "weights": (1.0, 1.0),
        "flip": True,
        "max_bad_share": 0.5,
    }

    def run(images_seen: int, steps: int, world: int) -> list[list[Batch]]:
        shards = open_shards([folder, small])
        loaders = [Loader(shards, rank=rank, world_size=world, **settings) for rank in range(world)]
        ranks = [list(islice(loader.train_batches(images_seen), steps)) for loader in loaders]
        for loader in loaders:
            loader.close()
        return [[batch for rank in ranks for batch in rank[step]] for step in range(steps)]

    whole = run(0, 20, 1)
    seen = ids(whole)
    from_small = [index for index in seen if index >= NUM_SAMPLES]
    assert abs(len(from_small) - 240) < 60
    assert NUM_SAMPLES not in seen

    planned = MixedOrder(
        [[8] * 6 + [2], [8, 1]],
        [1.0, 1.0],
        SETTINGS["seed"],
    ).draws(
        0,
        20 * 24,
    )
    for due, used in zip(planned.ids.tolist(), seen, strict=True):
        assert used == due or (due == NUM_SAMPLES and used > NUM_SAMPLES)

    assert_same(
        whole,
        run(0, 4, 3) + run(96, 16, 2),
    )


def test_targets_belong_to_their_samples(folder: Path) -> None:
    for step in train(folder, 3, 3, targets="classes", flip=True):
        for batch in step:
            assert batch.classes_BC is not None
            assert batch.difficult_BC is not None
            expected = torch.nn.functional.one_hot(
                batch.sample_ids_B % 3,
                3,
            )
            assert torch.equal(
                batch.classes_BC,
                expected.float(),
            )
            assert torch.equal(
                batch.difficult_BC, (expected > 0) & (batch.sample_ids_B % 5 == 0)[:, None]
            )

    for step in train(folder, 3, 3, targets="mask", flip=True):
        for batch in step:
            assert batch.mask_BHW is not None
            assert (batch.mask_BHW[:, :16] == 255).all()
            assert (batch.mask_BHW[:, 16:] == (batch.sample_ids_B % 3 + 1)[:, None, None]).all()


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_evaluation_sees_each_sample_once_in_order(folder: Path, world: int) -> None:
    """20 ranks for 13 micro-batches: some get none."""
    shards = open_shards([folder])
    settings = SETTINGS | {"global_batch_size": 240, "flip": True, "random_crop_min_area": 0.3}
    seen: list[tuple[int, torch.Tensor]] = []
    for rank in range(world):
        loader = Loader(
            shards,
            rank=rank,
            world_size=world,
            **settings,
        )
        for batch in loader.eval_batches():
            assert torch.equal(
                batch.positions_B,
                batch.sample_ids_B,
            )
            seen += zip(
                batch.sample_ids_B.tolist(),
                batch.lab_B3HW,
                strict=True,
            )
        loader.close()

    assert sorted(i for i, _ in seen) == list(range(NUM_SAMPLES))

    plain = Loader(shards, **SETTINGS)
    whole = torch.cat([batch.lab_B3HW for batch in plain.eval_batches()])
    for index, lab_3HW in seen:
        assert torch.equal(lab_3HW, whole[index])  # no crop, no flip


def test_presized_and_resized_paths_agree(
    tmp_path: Path, samples: list[TinySample], folder: Path
) -> None:
    """The same pictures under another policy go through the resize, which then changes nothing."""
    other = write_set(
        tmp_path / "original",
        samples,
        policy="original",
    )
    assert_same(
        train(folder, 0, 2, flip=True, targets="mask"),
        train(other, 0, 2, flip=True, targets="mask"),
    )


def expected_ids(
    first: int,
    number: int,
    bad: set[int],
    seed: int = 3,
) -> list[int]:
    """Apply the rule, written a second time: take the first usable one of the drawn samples."""
    order = Order([8] * 6 + [2], seed)
    chosen = []
    for position, planned in enumerate(order.sample_ids(first, number).tolist(), start=first):
        sample_id, attempt = planned, 0
        while sample_id in bad:
            attempt += 1
            sample_id = replacement(
                seed,
                position // NUM_SAMPLES,
                planned,
                attempt,
                NUM_SAMPLES,
            )
        chosen.append(sample_id)

    return chosen


@pytest.mark.parametrize(
    ("targets", "bad"),
    [
        ("none", {7, 12, 20}),
        ("mask", {7, 12, 20, 31, 33}),
        ("classes", {7, 12, 20, 40}),
    ],
)
def test_bad_samples_are_replaced_by_the_rule(
    damaged: Path, targets: str, bad: set[int], caplog: Any
) -> None:
    settings: dict[str, Any] = {
        "targets": targets,
        "flip": True,
        "max_bad_share": 0.5,
    }
    caplog.set_level(logging.WARNING, logger="shards")
    one = train(damaged, 0, 5, **settings)

    assert ids(one) == expected_ids(0, 5 * 24, bad)
    assert any("sample 20 at position" in message for message in caplog.messages)
    assert_same(
        one,
        train(damaged, 0, 5, world=3, num_threads=2, **settings),
    )
    resumed = train(damaged, 0, 2, world=2, **settings) + train(damaged, 48, 3, **settings)
    assert_same(one, resumed)


def test_replaced_samples_are_recorded(damaged: Path) -> None:
    loader = Loader(
        open_shards([damaged]),
        **SETTINGS,
        max_bad_share=0.5,
    )
    steps = list(islice(loader.train_batches(0), 2))
    loader.close()
    recorded = {fault.position: fault for fault in loader.replaced}
    order = Order([8] * 6 + [2], 3).sample_ids(0, 48).tolist()
    for position, (planned, used) in enumerate(zip(order, ids(steps), strict=True)):
        assert (position in recorded) == (planned in {7, 12, 20})
        if position in recorded:
            assert recorded[position].used == used

    reasons = " ".join(fault.reason for fault in loader.replaced)

    assert "does not decode" in reasons
    assert "another checksum" in reasons
    assert "not an intact JPEG" in reasons


def test_bad_samples_are_left_out_of_evaluation(damaged: Path) -> None:
    seen: list[int] = []
    for rank in range(2):
        settings = SETTINGS | {
            "targets": "mask",
            "rank": rank,
            "world_size": 2,
            "global_batch_size": 8,
        }
        loader = Loader(
            open_shards([damaged]),
            **settings,
        )
        seen += [i for batch in loader.eval_batches() for i in batch.sample_ids_B.tolist()]
        assert all(fault.used is None for fault in loader.replaced)
        loader.close()

    assert sorted(seen) == [i for i in range(NUM_SAMPLES) if i not in {7, 12, 20, 31, 33}]


def test_too_many_bad_samples_stop_the_run_with_the_list(damaged: Path, folder: Path) -> None:
    loader = Loader(
        open_shards([damaged]),
        **SETTINGS,
        max_bad_share=0.01,
    )
    with pytest.raises(
        LoadError, match=r"9 of the first \d+ samples .* share of 1.00%: sample \d+ \(tiny"
    ):
        list(islice(loader.train_batches(0), 1000))

    strict = Loader(
        open_shards([damaged]),
        **SETTINGS,
        max_bad_share=0.0,
    )
    with pytest.raises(LoadError, match="1 of the first"):
        list(islice(strict.train_batches(0), 1000))

    unharmed = Loader(
        open_shards([folder]),
        **SETTINGS,
        max_bad_share=0.0,
    )
    list(islice(unharmed.train_batches(0), 3))

    for one in (loader, strict, unharmed):
        one.close()


def test_broken_headers_never_reach_the_decoder(tmp_path: Path) -> None:
    """They would crash DALI: in a large batch its threads outlive the error of one image."""
    samples = [tiny_sample(index) for index in range(64)]
    for index in range(0, 64, 3):
        image = samples[index].image
        samples[index].image = (
            image[: 20 + 5 * index] + b"x" * 300 if index % 2 else image[: 60 + 5 * index]
        )

    shards = open_shards([write_set(tmp_path / "set", samples)])
    settings = SETTINGS | {"global_batch_size": 64, "micro_batch_size": 64, "max_bad_share": 0.9}
    loader = Loader(shards, **settings, num_threads=2)
    for _ in range(10):
        assert sum(len(batch.sample_ids_B) for batch in loader.eval_batches()) == 42

    loader.close()


def test_shards_deleted_while_the_run_goes_on(tmp_path: Path, samples: list[TinySample]) -> None:
    """One shard gone, its file closed: replaced. All gone: the run stops, and soon."""
    shards = open_shards([write_set(tmp_path / "set", samples)])
    reads = ShardFiles()

    def reopening(path: Path, offset: int, size: int) -> bytes:
        reads.close()
        return reads.read_at(path, offset, size)

    loader = Loader(shards, **SETTINGS, max_bad_share=0.4, read_at=reopening)
    batches = loader.train_batches(0)
    first = next(batches)
    assert [batch.positions_B.tolist() for batch in first] == [
        list(range(at, at + 4)) for at in range(0, 24, 4)
    ]
    shards.shard_paths[2].unlink()
    later = list(islice(batches, 6))
    assert not set(ids(later[2:])) & set(range(16, 24))
    assert any("No such file" in fault.reason for fault in loader.replaced)
    for path in shards.shard_paths:
        path.unlink(missing_ok=True)
    with pytest.raises(LoadError):
        list(islice(batches, 100))
    loader.close()


def test_failing_and_stalling_reader(folder: Path) -> None:
    shards = open_shards([folder])
    files = ShardFiles()
    release = threading.Event()
    stalled = shards.rows(np.array([5]))[0]

    def read_at(path: Path, offset: int, size: int) -> bytes:
        if path == shards.shard_paths[0] and offset == stalled["image_offset"]:
            release.wait()
        if path == shards.shard_paths[4]:
            raise OSError(116, "Stale file handle")
        return files.read_at(path, offset, size)

    bad = {5, *range(32, 40)}
    loader = Loader(
        shards,
        **SETTINGS,
        max_bad_share=0.5,
        read_at=read_at,
        read_timeout_s=0.3,
    )
    steps = list(islice(loader.train_batches(0), 2))
    assert ids(steps) == expected_ids(0, 48, bad)
    loader.close()
    release.set()
    files.close()


def test_close_ends_although_a_read_is_stalled(folder: Path) -> None:
    """The read returns only after `close` has: it cannot have been waited for."""
    reading = threading.Event()
    release = threading.Event()

    def read_at(path: Path, offset: int, size: int) -> bytes:
        reading.set()
        release.wait()
        raise OSError(5, "Input/output error")

    loader = Loader(
        open_shards([folder]),
        **SETTINGS,
        read_at=read_at,
    )
    batches = loader.train_batches(0)
    consumer = threading.Thread(
        target=lambda: next(batches, None),
        daemon=True,
    )
    consumer.start()
    assert reading.wait(LONG_S)

    try:
        loader.close()
        consumer.join(LONG_S)
        assert not consumer.is_alive()
    finally:
        release.set()


def test_close_ends_a_stream_that_is_about_to_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(open_shards([folder]), **SETTINGS)
    start = Stream.start

    def close_first(stream: Stream) -> None:
        loader.close()
        start(stream)

    monkeypatch.setattr(Stream, "start", close_first)
    assert next(loader.train_batches(0), None) is None


def test_loader_can_be_left_at_any_moment_and_used_again(folder: Path) -> None:
    loader = Loader(
        open_shards([folder]),
        **SETTINGS,
    )
    first = next(loader.train_batches(0))  # the iterator is dropped here

    assert len(list(loader.eval_batches())) == 13

    batches = loader.train_batches(0)
    assert_same([first], [next(batches)])
    loader.close()

    assert next(batches, None) is None

    assert_same(
        [first],
        [next(loader.train_batches(0))],
    )

    assert loader.wait_s > 0

    loader.close()


def test_process_ends_with_a_loader_in_full_run(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from shards.loading.loader import Loader\n"
        "from shards.loading.shard_set import open_shards\n"
        "loader = Loader(open_shards([Path(sys.argv[1])]), image_size=32, global_batch_size=8,\n"
        "                micro_batch_size=4, num_threads=2)\n"
        "batches = loader.train_batches(0); next(batches)\n"
        "print('seen')\n"
    )

    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        str(folder),
    ]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
    )

    assert (
        done.returncode,
        done.stdout,
        done.stderr,
    ) == (0, "seen\n", "")


def test_wrong_use_is_refused(folder: Path, tmp_path: Path, samples: list[TinySample]) -> None:
    shards = open_shards([folder])
    with pytest.raises(OrderError, match="make it a multiple of 8"):
        Loader(
            shards,
            **SETTINGS | {"global_batch_size": 12},
            world_size=2,
        )

    with pytest.raises(OrderError, match=r"random_crop_min_area 0\.0"):
        Loader(shards, **SETTINGS, random_crop_min_area=0.0)

    with pytest.raises(OrderError, match="of a set of 50 samples"):
        Loader(
            shards,
            **SETTINGS | {"global_batch_size": 52},
        ).train_batches(0)

    with pytest.raises(OrderError, match="from position -1"):
        Loader(shards, **SETTINGS).train_batches(-1)

    unlabelled = write_set(
        tmp_path / "plain",
        samples[:9],
        classes=(),
        with_masks=False,
    )
    with pytest.raises(ManifestError, match="no classes"):
        Loader(
            open_shards([unlabelled]),
            **SETTINGS,
            targets="classes",
        )

    with pytest.raises(ManifestError, match="not the same ones in all folders"):
        Loader(
            open_shards([folder, unlabelled]),
            **SETTINGS,
            targets="classes",
        )

    unmasked = write_set(
        tmp_path / "unmasked",
        samples[:9],
        with_masks=False,
    )
    with pytest.raises(ManifestError, match="packed without masks"):
        Loader(
            open_shards([unmasked]),
            **SETTINGS,
            targets="mask",
        )


def test_the_hardware_decoders_share_reaches_the_graph(folder: Path) -> None:
    """It has a meaning on a GPU only: the graph's options are all that a CPU can show."""
    words = {"image_size": 16, "global_batch_size": 4, "micro_batch_size": 4}
    with_share = Loader(
        open_shards([folder]),
        **words,  # type: ignore[arg-type]
        hardware_decoder_share=0.25,
    )

    assert with_share.decode_spec.hardware_decoder_share == 0.25
    with_share.close()
