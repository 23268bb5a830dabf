"""Faults of the network between two hosts: every rank ends with a reason, or the run goes on.

`pytest -m hosts` (root, `ip`, some minutes): the hosts are network namespaces of this machine.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.toy import free_port
from helpers.two_hosts import TwoHosts, can_lose, can_make_hosts, ends, two_hosts

from colorgan.checkpoints.checkpoint import latest_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ExitStatus
from colorgan.runs.log import read_log

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(not can_make_hosts(), reason="needs root and the command ip"),
]
SCRIPT = Path(__file__).parents[2] / "helpers" / "host_rank.py"
STEPS, TIMEOUT_S = 24, 15
# The promise is launch.timeout_s + 30 s; starting processes on a busy machine comes on top.
LIMIT_S = TIMEOUT_S + 30
GAVE_UP = {ExitStatus.LOST_RANK, ExitStatus.HUNG}


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest) -> None:
    if "hosts" not in request.config.option.markexpr:
        pytest.skip("takes minutes: pytest -m hosts")


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with two_hosts(f"cg{abs(hash(request.node.name)) % 10_000}") as made:
        yield made


def start(
    hosts: TwoHosts,
    folder: Path,
    strategy: str,
    where: str,
    timeout_s: int,
    clock_s: float = 0.0,
) -> list[subprocess.Popen[str]]:
    """Start both ranks of a run."""
    words = [
        str(folder),
        strategy,
        str(STEPS),
        str(timeout_s),
        str(clock_s),
        where,
    ]
    port = free_port()

    return [hosts.start(host, SCRIPT, *words, port=port) for host in (0, 1)]


def wait_for_log(
    folder: Path,
    kind: str,
    count: int,
    ranks: list[subprocess.Popen[str]],
) -> None:
    """Wait until the run has logged that many lines of a kind."""
    until = time.monotonic() + 240

    while time.monotonic() < until and all(rank.poll() is None for rank in ranks):
        try:
            if sum(line["kind"] == kind for line in read_log(folder)) >= count:
                return
        except OSError:
            pass
        time.sleep(0.05)

    raise AssertionError([rank.communicate()[0] for rank in ranks if rank.poll() is not None])


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(
        folder / "checkpoints",
        Ranks.single(),
        pytest.fail,
    )

    assert checkpoint is not None
    assert checkpoint.images_seen == 8 * STEPS
    state = {}
    for role in checkpoint.roles():
        state |= {f"{role}/{name}": t for name, t in checkpoint.tensors(role).items()}
    return state


_CALM: dict[str, dict[str, torch.Tensor]] = {}


def calm_state(
    hosts: TwoHosts,
    folder: Path,
    strategy: str,
) -> dict[str, torch.Tensor]:
    """Return the end of a run without a fault, trained once per strategy."""
    if strategy not in _CALM:
        results = ends(
            start(hosts, folder, strategy, "step", 60),
            300,
        )
        assert [status for status, _ in results] == [0, 0], results
        _CALM[strategy] = final_state(folder)

    return _CALM[strategy]


def check_end(hosts: TwoHosts, folder: Path, strategy: str) -> None:
    """Resume where it has not ended; the end is that of a calm run, bit for bit."""
    results = ends(
        start(hosts, folder, strategy, "step", 60),
        300,
    )

    assert [status for status, _ in results] == [0, 0], results
    calm = calm_state(
        hosts,
        folder.with_name("calm"),
        strategy,
    )
    ours = final_state(folder)

    assert ours.keys() == calm.keys()
    for name, tensor in calm.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("fault", "strategy", "where"),
    [
        (TwoHosts.cut, "ddp", "step"),
        (TwoHosts.cut, "zero2", "step"),
        (TwoHosts.cut, "ddp", "validation"),
        (TwoHosts.cut, "ddp", "save"),
        (TwoHosts.cut_one_way, "ddp", "step"),
        (TwoHosts.slow, "ddp", "step"),
    ],
)
def test_a_link_that_stays_bad_ends_all_ranks_with_a_reason(
    hosts: TwoHosts,
    tmp_path: Path,
    fault: Callable[[TwoHosts], None],
    strategy: str,
    where: str,
) -> None:
    folder = tmp_path / "run"
    ranks = start(
        hosts,
        folder,
        strategy,
        where,
        TIMEOUT_S,
    )
    wait_for_log(folder, "train", 6, ranks)
    fault(hosts)
    began = time.monotonic()
    results = ends(ranks, 4 * LIMIT_S)
    print(f"{fault.__name__} {strategy} {where}: ended after {time.monotonic() - began:.0f} s")
    outputs = "\n".join(output for _, output in results)
    print("\n".join(line for line in outputs.splitlines() if "rank" in line.lower())[:2000])

    assert {status for status, _ in results} <= GAVE_UP, results
    assert "Rank " in outputs or "rank 0 (" in outputs or "rank 1 (" in outputs, outputs


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_after_the_link_is_mended_the_same_command_resumes_bit_for_bit(
    hosts: TwoHosts, tmp_path: Path, strategy: str
) -> None:
    folder = tmp_path / "run"
    ranks = start(hosts, folder, strategy, "step", TIMEOUT_S)
    wait_for_log(folder, "save", 1, ranks)
    hosts.cut()
    assert {status for status, _ in ends(ranks, 4 * LIMIT_S)} <= GAVE_UP
    hosts.mend()
    check_end(hosts, folder, strategy)


@pytest.mark.skipif(not can_lose(), reason="needs the command nft")
def test_a_lossy_link_slows_a_run_and_changes_nothing(hosts: TwoHosts, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start(hosts, folder, "ddp", "step", 60)
    wait_for_log(folder, "train", 2, ranks)
    hosts.lose()
    assert [status for status, _ in ends(ranks, 300)] == [0, 0]
    hosts.mend()
    check_end(hosts, folder, "ddp")


def test_a_link_that_is_back_after_20_s_costs_20_s(hosts: TwoHosts, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start(hosts, folder, "ddp", "step", 120)
    wait_for_log(folder, "train", 2, ranks)
    hosts.cut()
    time.sleep(20)
    hosts.mend()

    assert [status for status, _ in ends(ranks, 300)] == [0, 0]
    check_end(hosts, folder, "ddp")


def test_a_renamed_host_and_a_clock_an_hour_off_change_nothing(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ranks = start(hosts, folder, "ddp", "step", TIMEOUT_S, clock_s=3600.0)
    wait_for_log(folder, "train", 2, ranks)
    hosts.rename(ranks[1])
    assert [status for status, _ in ends(ranks, 300)] == [0, 0]
    check_end(hosts, folder, "ddp")


def test_a_host_that_cannot_be_reached_at_the_start_is_named(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    hosts.cut()
    began = time.monotonic()
    results = ends(
        start(
            hosts,
            tmp_path / "run",
            "ddp",
            "step",
            TIMEOUT_S,
        ),
        300,
    )
    print(f"start: ended after {time.monotonic() - began:.0f} s")
    print("\n".join(output.strip().splitlines()[-1] for _, output in results))

    assert all(status == ExitStatus.MISTAKE for status, _ in results), results
    assert all("Traceback" not in output for _, output in results)
