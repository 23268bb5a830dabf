"""Failures of real ranks: hung, stopped, killed, a disk that is full, a loss that is no number.

And who is named.
"""

import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import ToyLoader, on_ranks, toy_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.multiprocessing import ProcessExitedException

from colorgan.checkpoints.checkpoint import latest_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ExitStatus, LostRankError, NotFiniteError, SaveError
from colorgan.runs.hang_reports import SUMMARY, RankStatus, read_status, summary_text, verdict
from colorgan.runs.log import read_log
from colorgan.runs.watchdog import Watchdog, is_alive, process_start
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()
WAITING = ("/x/training.py:1 fit", "/torch/distributed/distributed_c10d.py:9 all_reduce")


def status(rank: int, **changes: Any) -> RankStatus:
    usual = RankStatus(
        rank=rank,
        host="a",
        process=100 + rank,
        started=1,
        point="agree",
        number=70,
        step=9,
        images_seen=72,
        last_collective="x",
        idle_s=8.0,
        time=50.0,
        stack=WAITING,
    )

    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (
            {"stack": None, "time": 38.0},
            "Rank 2 does not answer (process 102 on a is stopped, killed or cut off): its last "
            "sign was 12.0 s before, at 'agree' of step 9.",
        ),
        (
            {"number": 61, "point": "read"},
            "Rank 2 is behind: at 'read' of step 9, while the others are at 'agree' of step 9.",
        ),
        (
            {"images_seen": 64, "step": 8, "number": 69},
            "Rank 2 is behind: at 'agree' of step 8, while the others",
        ),
        (
            {"stack": ("/y/read.py:3 read",)},
            "but Rank 2 is in /y/read.py:3 read, which does not wait for other ranks.",
        ),
        (
            {"stack": ("/torch/distributed/c.py:7 gather",)},
            "but Rank 2 is in /torch/distributed/c.py:7 gather and not",
        ),
        ({}, "All ranks are at 'agree' of step 9 in the same call"),
    ],
)
def test_the_rank_that_differs_is_named(odd: dict[str, Any], sentence: str) -> None:
    assert sentence in verdict(
        [
            status(0),
            status(1),
            status(2, **odd),
            status(3),
        ]
    )


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("/x/layers.py:63 forward: keys = self.keys_B.to(x.device)", True),
        ("/x/loop.py:90 flush: means = float(total) / count", True),
        ("/x/read.py:3 read: data = file.read(size)", False),
    ],
)
def test_under_nccl_a_rank_that_waits_for_its_gpu_waits_for_the_others(
    line: str, waits: bool
) -> None:
    """NCCL's calls return at once: the wait is where the program needs a number of the GPU."""
    assert status(0, device="cuda", stack=(line,)).waits == waits
    assert not status(0, device="cpu", stack=(line,)).waits


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from(["rank", "host", "stacks", "idle_s", "sample_positions", "point", "time"]),
        st.none()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.text(), max_size=2),
    ),
    cut=st.integers(0, 400),
)
def test_any_report_is_read_or_ignored(tmp_path: Path, changes: dict[str, Any], cut: int) -> None:
    with Watchdog(tmp_path / "hangs", ONE, timeout_s=60) as watchdog:
        # A true report with strange parts, as a newer version or a full disk would leave it.
        whole = json.dumps({**watchdog.status(), "time": 1.0, **changes})
    path = tmp_path / "rank.json"

    # Cut as well: a rank may be killed while it writes.
    for text in (whole, whole[:cut]):
        path.write_text(text)
        read = read_status(path)
        assert read is None or verdict([read, None])
        assert read is None or summary_text([read], 1.0)


def test_a_rank_that_left_nothing_is_named() -> None:
    assert verdict([status(0), None]) == "Rank 1 is unknown: no report and no beat."


def test_it_ends_a_process_that_stops_moving_and_no_other(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watchdog(tmp_path, ONE, timeout_s=2.0, end=ended.append) as watchdog:
        for images in range(24):
            watchdog.note("moving", images)
            time.sleep(0.1)
        assert not ended
        watchdog.note("asleep", 640, ToyBatches, collective=True)
        time.sleep(2.5)

    assert ended == [ExitStatus.HUNG]
    report = json.loads((watchdog.folder / "rank-00000.json").read_text())
    assert report["point"] == "asleep"
    assert report["images_seen"] == 640
    assert report["sample_positions"] == [640, 647]
    assert report["last_collective"] == "asleep at 640 images"
    assert any(
        "test_it_ends_a_process_that_stops" in line for line in report["stacks"]["MainThread"]
    )
    assert (watchdog.folder / SUMMARY).read_text().startswith("The run hung")


ToyBatches = [ToyLoader(8, 8).batch(range(640, 648))]


def test_a_run_that_ends_well_leaves_no_trace(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "hangs", ONE, timeout_s=60) as watchdog:
        watchdog.note("x", 0)
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    me = status(0, process=os.getpid(), started=process_start(os.getpid()))
    assert is_alive(me)
    assert not is_alive(replace(me, started=me.started - 1))
    assert not is_alive(replace(me, process=2**22 + 1))


def _train(
    ranks: Ranks, folder: str, fault: Callable[[Ranks, int, Any], None], raises: type[Exception]
) -> None:
    original = ToyLoader.batch

    def batch(self: ToyLoader, slots: range) -> Any:
        made = original(self, slots)
        if slots.start < 10_000:  # not in validation
            fault(ranks, slots.start, made)
        return made

    ToyLoader.batch = batch  # type: ignore[method-assign]
    recipe = toy_recipe(Path(folder), launch={"timeout_s": 6})
    loader = ToyLoader(8, 8 // ranks.world_size, ranks.rank, ranks.world_size)
    try:
        pretrain(recipe, ranks, total_images=48, data_digest="abc", train=loader, val=loader)
    except raises as error:
        Path(folder, f"said-{ranks.rank}").write_text(str(error))


def _hang_on_main(ranks: Ranks, slot: int, batch: Any) -> None:
    if ranks.rank == 0 and slot >= 24:
        time.sleep(600)


def _stop_the_other(ranks: Ranks, slot: int, batch: Any) -> None:
    if ranks.rank == 1 and slot >= 24:
        os.kill(os.getpid(), signal.SIGSTOP)


def _kill_the_other(ranks: Ranks, slot: int, batch: Any) -> None:
    if ranks.rank == 1 and slot >= 24:
        os.kill(os.getpid(), signal.SIGKILL)


def _fill_the_disk(ranks: Ranks, slot: int, batch: Any) -> None:
    if ranks.rank == 1 and slot >= 24:  # one rank's files cannot grow over 4 KiB from here on
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def _not_a_number(ranks: Ranks, slot: int, batch: Any) -> None:
    if ranks.rank == 1 and slot >= 24:
        batch.lab_B3HW[0, 1, 0, 0] = torch.nan


def newest(folder: Path) -> int:
    found = latest_checkpoint(folder / "checkpoints", ONE, pytest.fail)
    return found.images_seen if found else 0


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (_hang_on_main, "Rank 0 is behind: at 'wait for the loader'"),
        (_stop_the_other, "Rank 1 does not answer"),
    ],
)
def test_a_hung_rank_is_named_and_all_end(tmp_path: Path, fault: Any, named: str) -> None:
    with pytest.raises(ProcessExitedException) as caught:
        on_ranks(2, _train, str(tmp_path), fault, KeyError)
    assert caught.value.exit_code == ExitStatus.HUNG or caught.value.signal_name == "SIGKILL"
    summary = next(tmp_path.glob(f"hangs/*/{SUMMARY}")).read_text()
    assert named in summary
    assert len(list(tmp_path.glob("hangs/*/rank-*.json"))) == (2 if fault is _hang_on_main else 1)
    assert newest(tmp_path) == 16


def test_a_killed_rank_is_named_by_the_others(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException) as caught:
        on_ranks(2, _train, str(tmp_path), _kill_the_other, LostRankError)
    assert caught.value.signal_name == "SIGKILL"
    said = (tmp_path / "said-0").read_text()
    assert re.match(r"rank 1 \(process \d+ on .*\) ended, last at '", said), said
    assert newest(tmp_path) == 16


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (_fill_the_disk, SaveError, "rank 1 could not write"),
        (_not_a_number, NotFiniteError, "is nan at 32 images"),
    ],
)
def test_all_ranks_stop_for_the_same_reason(
    tmp_path: Path, fault: Any, error: Any, sentence: str
) -> None:
    on_ranks(2, _train, str(tmp_path), fault, error)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]

    assert said[0] == said[1]
    assert sentence in said[0]
    assert newest(tmp_path) == 16

    event = read_log(tmp_path)[-1]
    assert (
        event["kind"],
        event["text"],
        event["status"],
    ) == ("event", said[0], error.exit_status)
