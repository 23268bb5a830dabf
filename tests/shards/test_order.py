"""The order: a grid of samples, shards, ranks, batches and interruptions; and its quality."""

import itertools

import numpy as np
import pytest
from scipy import stats

from shards import order as order_module
from shards.errors import OrderError
from shards.order import (
    MIX_CYCLE,
    RUN_SAMPLES,
    SMALL_SET,
    SPREAD_RUNS,
    MixedOrder,
    Order,
    crop_windows,
    draw_uniform,
    flips,
    rank_slice,
    replacement,
    splitmix64,
)


def shard_sizes(num_samples: int, per_shard: int) -> list[int]:
    return [min(per_shard, num_samples - begin) for begin in range(0, num_samples, per_shard)]


def ids_of_run(
    order: Order, global_batch: int, micro: int, world: int, images_seen: int, steps: int
):
    """Return what a run on `world` ranks sees, micro-batches joined in the ranks' order."""
    seen = []

    for step in range(steps):
        first = images_seen + step * global_batch
        for rank in range(world):
            share = rank_slice(global_batch, micro, rank, world)
            for index in range(share.num_micro_batches):
                seen.append(
                    order.sample_ids(
                        first + share.offset + index * micro,
                        micro,
                    )
                )

    return np.concatenate(seen)


def test_splitmix64_gives_the_published_values() -> None:
    # First outputs of Vigna's splitmix64.c from state 1234567.
    gamma = 0x9E3779B97F4A7C15
    counters = np.array(
        [1234567 + step * gamma & 2**64 - 1 for step in range(3)],
        np.uint64,
    )

    assert splitmix64(counters).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_order_is_pinned() -> None:
    """A change here changes what every resumed run sees."""
    order = Order([4, 4, 4], seed=1, window_shards=2)
    assert order.sample_ids(0, 24).tolist() == PINNED


PINNED = [5, 4, 6, 7, 9, 0, 1, 10, 8, 11, 3, 2, 8, 11, 9, 10, 7, 0, 1, 5, 2, 4, 3, 6]


def test_order_by_runs_is_pinned() -> None:
    order = Order(
        [4, 4, 4],
        seed=1,
        window_shards=2,
        run_samples=2,
        spread_runs=2,
    )

    assert order.sample_ids(0, 24).tolist() == PINNED_BY_RUNS


PINNED_BY_RUNS = [7, 6, 4, 5, 1, 0, 2, 3, 11, 9, 10, 8, 8, 10, 9, 11, 1, 0, 3, 2, 5, 4, 7, 6]

RUNS = [
    (1, 1),
    (2, 1),
    (3, 4),
    (8, 2),
    (8, 1024),
]  # samples of a run, runs under way


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("window_shards", [1, 2, 64])
@pytest.mark.parametrize(
    ("num_samples", "per_shard"),
    [
        (1, 1),
        (5, 2),
        (64, 8),
        (97, 10),
        (1000, 33),
    ],
)
def test_every_sample_once_an_epoch(
    num_samples: int, per_shard: int, window_shards: int, runs: tuple[int, int]
) -> None:
    order = Order(
        shard_sizes(num_samples, per_shard),
        7,
        window_shards,
        *runs,
    )

    epochs = [order.sample_ids(epoch * num_samples, num_samples) for epoch in range(3)]
    for ids in epochs:
        assert sorted(ids.tolist()) == list(range(num_samples))
    if num_samples > 5:
        assert not np.array_equal(epochs[0], epochs[1])
        other = Order(
            shard_sizes(num_samples, per_shard),
            8,
            window_shards,
            *runs,
        )
        assert not np.array_equal(epochs[0], other.sample_ids(0, num_samples))


def test_shards_of_any_sizes_by_runs() -> None:
    """Those of several folders in sequence, some empty or shorter than a run."""
    sizes = [13, 0, 1, 40, 8, 7, 9, 0, 25, 16, 2, 31]
    order = Order(sizes, 4, 5, 8, 3)

    for epoch in range(3):
        assert sorted(
            order.sample_ids(
                epoch * sum(sizes),
                sum(sizes),
            ).tolist()
        ) == list(range(sum(sizes)))


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("num_samples", [16, 50, 333])
@pytest.mark.parametrize(
    ("global_batch", "micro"),
    [
        (16, 1),
        (16, 4),
        (16, 16),
        (12, 3),
        (48, 8),
    ],
)
def test_same_sequence_for_every_world_size(
    num_samples: int, global_batch: int, micro: int, runs: tuple[int, int]
) -> None:
    """Also for a batch larger than the set, and one that reaches over an epoch's edge."""
    order = Order(
        shard_sizes(num_samples, 7),
        3,
        4,
        *runs,
    )
    expected = order.sample_ids(5, 6 * global_batch)

    for world in range(1, global_batch // micro + 1):
        if global_batch % (micro * world) == 0:
            assert np.array_equal(
                ids_of_run(order, global_batch, micro, world, 5, 6),
                expected,
            )


@pytest.mark.parametrize("runs", RUNS[:3])
@pytest.mark.parametrize("num_samples", [50, 333])
def test_resume_anywhere_on_any_number_of_ranks(num_samples: int, runs: tuple[int, int]) -> None:
    """Stopped and taken up twice, on other ranks each time: nothing lost, nothing twice."""
    global_batch, micro = 24, 2
    order = Order(
        shard_sizes(num_samples, 10),
        11,
        3,
        *runs,
    )
    total = 40
    expected = order.sample_ids(0, total * global_batch)
    stops = range(0, total, 7)

    for (first, second), worlds in itertools.product(
        itertools.combinations(stops, 2), [(1, 2, 4), (12, 3, 1), (2, 1, 2)]
    ):
        legs = zip(
            (0, first, second),
            (first, second, total),
            worlds,
            strict=True,
        )
        parts = []
        for begin, end, world in legs:
            fresh = Order(
                shard_sizes(num_samples, 10), 11, 3, *runs
            )  # a new process remembers nothing
            if end > begin:
                parts.append(
                    ids_of_run(
                        fresh,
                        global_batch,
                        micro,
                        world,
                        begin * global_batch,
                        end - begin,
                    )
                )
        assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("runs", RUNS)
def test_any_range_equals_the_whole(runs: tuple[int, int]) -> None:
    order = Order(
        shard_sizes(97, 10),
        5,
        3,
        *runs,
    )
    whole = order.sample_ids(0, 400)
    for first, count in itertools.product(range(0, 300, 13), (1, 5, 97, 100)):
        assert np.array_equal(
            order.sample_ids(first, count),
            whole[first : first + count],
        )

    assert order.sample_ids(3, 0).shape == (0,)


def test_a_far_position_draws_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant work: the epoch's shards and one window's samples are hashed, however far it is."""
    num_hashed = 0

    def counting(counter: order_module.Hashes) -> order_module.Hashes:
        nonlocal num_hashed
        num_hashed += counter.size
        return splitmix64(counter)

    monkeypatch.setattr(order_module, "splitmix64", counting)
    order = Order(shard_sizes(1_281_167, 1000), 0)
    ids = order.sample_ids(10**12 + 12345, 256)
    assert len(set(ids.tolist())) == 256

    window_samples = 256 * 1000
    assert num_hashed < 3 * window_samples


@pytest.mark.parametrize("run_samples", [1, 8])
def test_reads_stay_in_a_window_of_shards(run_samples: int) -> None:
    sizes = shard_sizes(10_000, 50)
    order = Order(sizes, 2, window_shards=16, run_samples=run_samples)
    starts = np.cumsum([0, *sizes])
    shards = np.searchsorted(starts, order.sample_ids(0, 10_000), side="right") - 1

    # 200 shards in 13 even windows, none left short: 15 or 16 shards of 50 samples each.
    position = 0
    for window in range(order.num_windows):
        num_shards = 200 * (window + 1) // 13 - 200 * window // 13
        seen = set(shards[position : position + 50 * num_shards].tolist())
        assert len(seen) == num_shards
        position += 50 * num_shards
    assert position == 10_000


@pytest.mark.parametrize("run_samples", [1, RUN_SAMPLES])
def test_shuffle_of_one_window_is_as_good_as_perfect(run_samples: int) -> None:
    """Up to WINDOW_SHARDS shards: mean displacement n / 3, no correlation, classes mixed."""
    num_samples = 100_000
    ids = Order(
        shard_sizes(num_samples, 1000),
        0,
        run_samples=run_samples,
    ).sample_ids(0, num_samples)

    assert np.abs(ids - np.arange(num_samples)).mean() / num_samples == pytest.approx(
        1 / 3, abs=0.004
    )
    assert abs(stats.spearmanr(ids[:-1], ids[1:]).statistic) < 0.01

    mixed = distinct_classes(ids, num_samples // 1000) / PERFECT_CLASSES

    assert mixed == pytest.approx(1.0, rel=0.02) if run_samples == 1 else 0.9 < mixed <= 1.0


def test_small_sets_are_shuffled_sample_by_sample() -> None:
    assert Order([SMALL_SET - 1], 0).run_samples == 1
    assert Order([SMALL_SET], 0).run_samples == RUN_SAMPLES


def test_a_run_comes_strewn_and_before_the_page_cache_forgets_it() -> None:
    num_samples = 60_000
    ids = Order(
        shard_sizes(num_samples, 1001),
        5,
        64,
    ).sample_ids(
        0,
        num_samples,
    )
    runs = ids // 1001 * 1001 + ids % 1001 // RUN_SAMPLES
    members = np.argsort(runs, kind="stable")
    firsts = np.flatnonzero(
        np.diff(
            runs[members],
            prepend=-1,
        )
    )
    spans = np.maximum.reduceat(members, firsts) - np.minimum.reduceat(members, firsts)

    assert spans.max() <= 1.02 * RUN_SAMPLES * SPREAD_RUNS
    assert np.median(spans) > 0.6 * RUN_SAMPLES * SPREAD_RUNS
    assert (runs[1:] == runs[:-1]).mean() < 0.002


def test_shuffle_of_imagenet_packed_class_by_class() -> None:
    num_samples = 1_281_167
    order = Order(shard_sizes(num_samples, 1000), 0)
    ids = np.concatenate([order.sample_ids(at, 2560) for at in range(0, num_samples, 128_000)])

    assert (
        distinct_classes(
            ids,
            num_samples // 1000 + 1,
        )
        > 0.66 * PERFECT_CLASSES
    )


PERFECT_CLASSES = 1000 * (1 - (1 - 1 / 1000) ** 256)


def distinct_classes(ids: np.ndarray, class_size: int) -> float:
    """Classes in a batch of 256, on average, where samples lie class by class in 1000 classes."""
    classes = ids // class_size
    return float(
        np.mean([len(set(classes[at : at + 256])) for at in range(0, len(ids) - 255, 256)])
    )


def test_empty_set_and_negative_position_are_refused() -> None:
    with pytest.raises(OrderError, match="0 samples"):
        Order([], 0).sample_ids(0, 1)
    with pytest.raises(OrderError, match="positions start at 0"):
        Order([5], 0).sample_ids(-1, 1)


@pytest.mark.parametrize(
    ("global_batch", "micro", "rank", "world"),
    [
        (10, 3, 0, 1),
        (8, 4, 0, 3),
        (12, 2, 0, 4),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    global_batch: int, micro: int, rank: int, world: int
) -> None:
    with pytest.raises(OrderError, match=f"make it a multiple of {micro * world}"):
        rank_slice(global_batch, micro, rank, world)


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 1, 0, 1),
        (4, 0, 0, 1),
        (4, 4, 1, 1),
        (4, 4, -1, 1),
        (4, 4, 0, 0),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(OrderError, match="sizes must be at least 1"):
        rank_slice(*sizes)


def test_draws_are_uniform_and_independent_of_the_batch() -> None:
    ids = np.arange(20_000)
    epochs = np.full(20_000, 3)

    assert (
        stats.kstest(
            draw_uniform(0, 1, epochs, ids),
            "uniform",
        ).pvalue
        > 1e-3
    )

    flip = flips(9, epochs, ids)
    assert flip.mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(
        flip[100:110],
        flips(
            9,
            epochs[100:110],
            ids[100:110],
        ),
    )
    assert not np.array_equal(flip, flips(9, epochs + 1, ids))
    assert not np.array_equal(flip, flips(10, epochs, ids))


@pytest.mark.parametrize("min_area", [0.08, 0.5, 0.999])
def test_crop_windows_lie_in_the_picture(min_area: float) -> None:
    rng = np.random.default_rng(0)
    number = 20_000
    heights = rng.integers(1, 600, number)
    widths = rng.integers(1, 600, number)
    windows = crop_windows(
        1, np.zeros(number, np.int64), np.arange(number), heights, widths, min_area
    )
    top, left, height, width = windows.T

    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()

    large = (heights > 100) & (widths > 100)
    area = (height * width / (heights * widths))[large]

    assert area.min() > min_area - 0.02
    assert area.mean() == pytest.approx(
        (1 + min_area) / 2,
        abs=0.02,
    )

    ratio = (width / widths / (height / heights))[large]

    assert ratio.min() > 0.72
    assert ratio.max() < 1.37


def test_whole_pictures_without_cropping() -> None:
    sizes = np.array([7, 300])
    windows = crop_windows(
        0,
        np.zeros(2, np.int64),
        np.arange(2),
        sizes,
        sizes + 1,
        1.0,
    )

    assert windows.tolist() == [
        [0, 0, 7, 8],
        [0, 0, 300, 301],
    ]


def test_replacements_differ_by_attempt_and_lie_in_the_set() -> None:
    chosen = [replacement(3, 1, 77, attempt, 10_000) for attempt in range(1, 50)]
    assert len(set(chosen)) > 45
    assert all(0 <= sample_id < 10_000 for sample_id in chosen)
    assert chosen[0] == replacement(3, 1, 77, 1, 10_000)


MIXES = [
    (
        [[500, 400], [300]],
        [1.0, 1.0],
    ),
    (
        [
            [100] * 7,
            [9, 1],
            [50] * 3,
        ],
        [0.7, 0.1, 0.2],
    ),
    ([[4000], [200]], [1.0, 99.0]),
]


@pytest.mark.parametrize(("sizes", "weights"), MIXES)
def test_shares_of_a_mix_are_exact_over_a_cycle(
    sizes: list[list[int]], weights: list[float]
) -> None:
    order = MixedOrder(sizes, weights, 3)
    firsts = np.cumsum(
        [
            0,
            *(sum(each) for each in sizes),
        ]
    )
    for cycle in range(2):
        ids = order.draws(cycle * MIX_CYCLE, MIX_CYCLE).ids
        owners = np.searchsorted(firsts, ids, side="right") - 1
        shares = np.bincount(owners, minlength=len(sizes)) / MIX_CYCLE
        assert shares == pytest.approx(
            np.array(weights) / sum(weights),
            abs=1 / MIX_CYCLE,
        )

    # And nearly so over any batch: no set comes in a lump.
    batches = owners[: MIX_CYCLE // 256 * 256].reshape(
        -1,
        256,
    )
    largest = int(np.argmax(weights))
    expected = 256 * weights[largest] / sum(weights)
    assert np.abs((batches == largest).sum(1) - expected).max() < 45


@pytest.mark.parametrize(("sizes", "weights"), MIXES)
def test_each_set_of_a_mix_goes_through_epochs_of_its_own(
    sizes: list[list[int]], weights: list[float]
) -> None:
    order = MixedOrder(sizes, weights, 5)
    draws = order.draws(0, MIX_CYCLE + 1000)
    first = 0
    for set_sizes in sizes:
        number = sum(set_sizes)
        here = draws.firsts == first
        assert set(draws.counts[here].tolist()) == {number}
        epochs = draws.epochs[here]
        ids = draws.ids[here]

        whole_epochs = len(ids) // number
        assert np.array_equal(
            epochs,
            np.arange(len(ids)) // number,
        )
        for epoch in range(min(whole_epochs, 20)):
            once = sorted(ids[epochs == epoch].tolist())
            assert once == list(range(first, first + number))
        first += number


@pytest.mark.parametrize(("sizes", "weights"), MIXES)
def test_any_range_of_a_mix_equals_the_whole(sizes: list[list[int]], weights: list[float]) -> None:
    """Also over a cycle's edge: resuming anywhere, on any ranks, sees the same samples."""
    begin = MIX_CYCLE - 300
    whole = MixedOrder(sizes, weights, 11).draws(begin, 700)
    for first, count in itertools.product(range(0, 600, 37), (1, 5, 64, 100)):
        part = MixedOrder(sizes, weights, 11).draws(
            begin + first,
            count,
        )
        expected = slice(first, first + count)
        assert np.array_equal(part.ids, whole.ids[expected])
        assert np.array_equal(part.epochs, whole.epochs[expected])

    assert MixedOrder(sizes, weights, 11).draws(7, 0).ids.shape == (0,)


def test_the_order_of_a_mix_is_pinned() -> None:
    """A change here changes what every resumed run sees."""
    draws = MixedOrder(
        [[4, 4], [3]],
        [2.0, 1.0],
        1,
    ).draws(
        0,
        20,
    )

    assert draws.ids.tolist() == PINNED_MIX


PINNED_MIX = [2, 5, 6, 10, 3, 0, 7, 4, 8, 9, 9, 10, 1, 2, 0, 6, 1, 3, 4, 8]


def test_a_far_position_of_a_mix_draws_one_cycle() -> None:
    order = MixedOrder(
        [[1000] * 100, [500] * 9],
        [3.0, 1.0],
        0,
    )
    draws = order.draws(10**12 + 5, 256)

    assert draws.ids.max() < 104_500
    assert draws.epochs.min() > 1_000_000


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([[5], [5]], [1.0], "1 weights for 2 folders"),
        ([[5], [5]], [1.0, 0.0], "must be a positive number"),
        (
            [[5], [5]],
            [1.0, -1.0],
            "must be a positive number",
        ),
        (
            [[5], [5]],
            [1.0, float("nan")],
            "must be a positive number",
        ),
        (
            [[5], [5]],
            [1.0, float("inf")],
            "must be a positive number",
        ),
        ([[5], []], [1.0, 1.0], "without samples"),
        ([[5], [5]], [1.0, 1e-6], "less than one sample in 65,536"),
    ],
)
def test_strange_weights_are_refused(
    sizes: list[list[int]], weights: list[float], message: str
) -> None:
    with pytest.raises(OrderError, match=message):
        MixedOrder(sizes, weights, 0)
