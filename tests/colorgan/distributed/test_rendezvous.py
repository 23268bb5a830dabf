"""The launcher's variables are checked, and a rank that is missing is named soon."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from colorgan.distributed.rendezvous import Place, meet, read_place
from colorgan.errors import LaunchError

ONE = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
FOUR = {**ONE, "RANK": "3", "WORLD_SIZE": "4"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def test_the_place_of_a_rank() -> None:
    assert read_place({}) == Place(0, 1, 0, "", 0)
    given = {**ONE, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert read_place(given) == Place(3, 4, 1, "h", 29500)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK=0 WORLD_SIZE=2 announces several processes, but MASTER_ADDR and MASTER_PORT are "
            "not",
        ),
        ({**ONE, "WORLD_SIZE": "2"}, "RANK is not set"),
        ({**ONE, "RANK": "1"}, "WORLD_SIZE is not set"),
        ({**ONE, "RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({**ONE, "RANK": "x", "WORLD_SIZE": "2"}, "RANK=x is not a whole number"),
        (
            {**ONE, "RANK": "0", "WORLD_SIZE": "0"},
            "WORLD_SIZE=0 is not a whole number of at least 1",
        ),
        ({**ONE, "RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
        (
            {**ONE, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
            r"LOCAL_RANK=2 is not below RANK=1 \+ 1",
        ),
        (
            {**FOUR, "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"},
            "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2",
        ),
        ({**FOUR, "LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 is above WORLD_SIZE=4"),
        ({**FOUR, "LOCAL_WORLD_SIZE": "all"}, "LOCAL_WORLD_SIZE=all is not a whole number"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 is not a whole number of at least 1"),
    ],
)
def test_variables_that_do_not_fit(env: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        read_place(env)


def test_ranks_meet() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        stores = list(
            pool.map(lambda rank: meet(Place(rank, 3, rank, "127.0.0.1", port), 20), range(3))
        )
    stores[0].set("key", "value")
    assert stores[2].get("key") == b"value"


def test_ranks_that_never_come_are_named() -> None:
    with pytest.raises(LaunchError, match=r"2 of 3 ranks did not join within 1 s: rank 1, 2\. Did"):
        meet(Place(0, 3, 0, "127.0.0.1", free_port()), 1)


def test_an_absent_first_rank_is_said() -> None:
    place = Place(1, 2, 0, "127.0.0.1", free_port())
    with pytest.raises(LaunchError, match="rank 1 could not reach rank 0 within 1 s"):
        meet(place, 1)


def test_another_program_at_the_port_of_rank_0_is_said() -> None:
    """It takes connections and never answers: torch alone would wait for ever."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        place = Place(1, 2, 0, "127.0.0.1", mute.getsockname()[1])
        with pytest.raises(LaunchError, match="does not answer as rank 0: is the port another"):
            meet(place, 1)


def test_a_connection_to_itself_is_no_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port without a server may be the one that a connection leaves from."""
    port = free_port()

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(address)
            own.connect(address)
        except OSError:
            own.close()
            raise
        return own

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is no store to open")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(dist, "TCPStore", refuse)
    with pytest.raises(LaunchError, match="could not reach rank 0 within 1 s"):
        meet(Place(1, 2, 0, "127.0.0.1", port), 1)


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        place = Place(0, 2, 0, "127.0.0.1", other.getsockname()[1])
        with pytest.raises(LaunchError, match="of this machine is in use: is another run starting"):
            meet(place, 1)
