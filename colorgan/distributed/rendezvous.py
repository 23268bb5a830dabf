"""How the ranks find each other: the launcher's variables, checked, and a store that all reach.

A rank that is missing is named within `JOIN_TIMEOUT_S`; torch alone waits for as long as the
longest collective call may take.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from colorgan.errors import LaunchError

# Seconds to wait for all ranks. COLORGAN_JOIN_TIMEOUT_S sets another value, for clusters whose
# nodes take minutes to load Python from a shared disk.
JOIN_TIMEOUT_S = 50.0
_MAX_NAMED = 8
Store = Any  # torch.distributed.Store, which torch's types do not export


@dataclass(frozen=True)
class Place:
    """This process's place in the launch, as the launcher's variables say."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int


def read_place(environment: Mapping[str, str] | None = None) -> Place:
    """Return this process's place; the only one where no launcher has set anything.

    Raises:
        LaunchError: A variable is missing or is not a number in its range.
    """
    env = os.environ if environment is None else environment
    world_size = _number(env, "WORLD_SIZE", 1, least=1)

    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not env.get(name)]
    # A rank above 0 means others, also where WORLD_SIZE was lost on the way.
    several = world_size > 1 or _number(env, "RANK", 0) > 0
    if several and missing:
        given = [f"{name}={env[name]}" for name in needed if env.get(name)]
        raise LaunchError(
            f"{' '.join(given)} announces several processes, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start with `accelerate launch` or "
            "torchrun, which set all of them, or unset them to train in one process"
        )

    rank = _number(env, "RANK", 0)
    if rank >= world_size:
        raise LaunchError(f"RANK={rank} is not below WORLD_SIZE={world_size}: ranks start at 0")
    local_rank = _number(env, "LOCAL_RANK", 0)
    _check_local(env, rank, world_size, local_rank)
    return Place(
        rank,
        world_size,
        local_rank,
        env.get("MASTER_ADDR", ""),
        _number(env, "MASTER_PORT", 0, most=65_535),
    )


def _check_local(env: Mapping[str, str], rank: int, world_size: int, local_rank: int) -> None:
    """Refuse places on this machine that contradict each other: devices and cores follow them.

    Raises:
        LaunchError: LOCAL_RANK or LOCAL_WORLD_SIZE is not in its range; names both.
    """
    # Where a launcher leaves it out, one rank a machine is meant.
    local_size = _number(env, "LOCAL_WORLD_SIZE", 1, least=1)
    if local_size > world_size:
        raise LaunchError(
            f"LOCAL_WORLD_SIZE={local_size} is above WORLD_SIZE={world_size}: the ranks of one "
            "machine are a part of all; let the launcher set both, or unset both"
        )
    known = env.get("LOCAL_WORLD_SIZE")
    if local_rank > rank or (known and local_rank >= local_size):
        below = f"LOCAL_WORLD_SIZE={local_size}" if known else f"RANK={rank} + 1"
        raise LaunchError(
            f"LOCAL_RANK={local_rank} is not below {below}: it numbers this machine's ranks from "
            "0; let the launcher set it"
        )


def _number(
    env: Mapping[str, str], name: str, default: int, *, least: int = 0, most: int = 1 << 30
) -> int:
    text = env.get(name) or str(default)
    if not text.isdigit() or not least <= int(text) <= most:
        raise LaunchError(f"{name}={text} is not a whole number of at least {least}")
    return int(text)


def meet(place: Place, timeout_s: float | None = None) -> Store:
    """Wait until all ranks have come; return the store that they share. Called on all ranks.

    Args:
        place: This process's place in the launch.
        timeout_s: Seconds to wait; None for JOIN_TIMEOUT_S or COLORGAN_JOIN_TIMEOUT_S.

    Raises:
        LaunchError: The store cannot be opened or reached, or a rank did not come; names it.
    """
    if timeout_s is None:
        timeout_s = _join_timeout_s()
    deadline = time.monotonic() + timeout_s

    store = _open_store(place, timeout_s)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # A prefix per attempt: after torchrun's restart, old arrivals must not count as new ones.
    arrivals = dist.PrefixStore(f"colorgan-{attempt}", store)  # type: ignore[attr-defined]
    try:
        arrivals.set(f"rank-{place.rank}", socket.gethostname())
        missing = _missing(arrivals, place.world_size)
        # Polled, as the store's own wait names no key when it times out.
        while missing and time.monotonic() < deadline:
            time.sleep(0.05)
            missing = _missing(arrivals, place.world_size)
    except (dist.DistError, RuntimeError):
        raise LaunchError(
            f"rank 0 at {place.address}:{place.port} ended while the ranks were joining"
        ) from None

    if missing:
        raise LaunchError(_absent(missing, place, timeout_s))
    return store


def _open_store(place: Place, timeout_s: float) -> Store:
    # torchrun's own process serves a store for its ranks; elsewhere rank 0 does.
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = place.rank == 0 and not by_agent

    deadline = time.monotonic() + timeout_s
    if not serves:
        _wait_for_server(place, timeout_s)
    left_s = max(1.0, deadline - time.monotonic())

    def connect() -> Store:
        return dist.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            place.world_size,
            is_master=serves,
            timeout=timedelta(seconds=left_s),
            # The constructor would wait without saying for whom; `meet` waits and names them.
            wait_for_workers=False,
            multi_tenant=True,
        )

    try:
        return _within(left_s + 1.0, connect)
    except TimeoutError:
        raise LaunchError(
            f"what listens at MASTER_ADDR={place.address}, MASTER_PORT={place.port} does not "
            "answer as rank 0: is the port another program's? Set another MASTER_PORT "
            "(--main_process_port, --master-port)"
        ) from None
    except (dist.DistError, RuntimeError, ValueError) as error:
        # torch has no error class for it; libuv and the older backend word it differently.
        text = str(error)
        if serves and ("EADDRINUSE" in text or "address already in use" in text.lower()):
            raise LaunchError(
                f"port {place.port} of this machine is in use: is another run starting here? Set "
                "another MASTER_PORT (--main_process_port, --master-port)"
            ) from None
        raise _unreachable(place, timeout_s) from None


def _within(seconds: float, work: Callable[[], Store]) -> Store:
    """Return what `work` does, in a thread: torch waits for ever for a server that is mute.

    Raises:
        TimeoutError: It has not ended in time; the thread stays, and does not keep the process.
    """
    done: Future[Store] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    return done.result(seconds)


def _wait_for_server(place: Place, timeout_s: float) -> None:
    """Wait until rank 0 listens; torch's own client prints its C++ stack when it gives up."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            # Again and again: on a cluster rank 0 may start a minute after the others.
            with socket.create_connection((place.address, place.port), timeout=5) as found:
                # Among hundreds of tries one may leave from that very port, and meet itself.
                if found.getsockname() != found.getpeername():
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise _unreachable(place, timeout_s)
        time.sleep(0.1)


def _unreachable(place: Place, timeout_s: float) -> LaunchError:
    return LaunchError(
        f"rank {place.rank} could not reach rank 0 within {timeout_s:.0f} s "
        f"(MASTER_ADDR={place.address}, MASTER_PORT={place.port}): did it start, and is the "
        "address the one that this machine reaches it by?"
    )


def _missing(arrivals: Store, world_size: int) -> list[int]:
    return [rank for rank in range(world_size) if not arrivals.check([f"rank-{rank}"])]


def _absent(missing: list[int], place: Place, timeout_s: float) -> str:
    names = ", ".join(map(str, missing[:_MAX_NAMED])) + (
        ", ..." if len(missing) > _MAX_NAMED else ""
    )
    return (
        f"{len(missing)} of {place.world_size} ranks did not join within {timeout_s:.0f} s: rank "
        f"{names}. Did they start, and do they have the same MASTER_ADDR={place.address} and "
        f"MASTER_PORT={place.port}?"
    )


def _join_timeout_s() -> float:
    text = os.environ.get("COLORGAN_JOIN_TIMEOUT_S", "")
    return float(text) if text.isdigit() and int(text) > 0 else JOIN_TIMEOUT_S
