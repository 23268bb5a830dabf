"""Two hosts on this machine: network namespaces joined by a cable, with hostnames of their own.

Needs root and `ip`. A fault of the link is made with routes, neighbours and queues, which every
kernel has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
ROOT = Path(__file__).resolve().parents[2]


def can_make_hosts() -> bool:
    """Return whether this process may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def can_lose() -> bool:
    """Return whether packets can be dropped at random: by nftables, as few kernels have netem."""
    return shutil.which("nft") is not None


class TwoHosts:
    """Namespaces with a cable between them; `name` keeps several pairs apart."""

    def __init__(self, name: str) -> None:
        self.names = (f"{name}-a", f"{name}-b")
        # Linux allows 15 characters.
        self.links = (f"{name}0"[-12:], f"{name}1"[-12:])

    def _on(self, host: int, *words: str) -> None:
        subprocess.run(
            ["ip", "netns", "exec", self.names[host], *words],
            check=True,
        )

    def open(self) -> None:
        """Make both hosts and the cable."""
        for name in self.names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        command = ["ip", "link", "add", self.links[0], "type", "veth", "peer", "name"]
        subprocess.run(
            [*command, self.links[1]],
            check=True,
        )

        for host, (name, link) in enumerate(zip(self.names, self.links, strict=True)):
            subprocess.run(["ip", "link", "set", link, "netns", name], check=True)
            self._on(
                host,
                "ip",
                "address",
                "add",
                f"{ADDRESSES[host]}/24",
                "dev",
                link,
            )
            self._on(host, "ip", "link", "set", link, "up")
            # Loopback is down in a new namespace, and gloo uses it.
            self._on(host, "ip", "link", "set", "lo", "up")

    def close(self) -> None:
        """Remove both hosts, with what still runs on them."""
        for name in self.names:
            # A namespace lives on as long as a process of it does.
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for process in listed.stdout.split():
                subprocess.run(["kill", "-9", process], check=False)
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def cut(self) -> None:
        """Pull the cable."""
        self._on(1, "ip", "link", "set", self.links[1], "down")

    def cut_one_way(self) -> None:
        """Lose whatever the second host sends: its frames go to an address that nobody has."""
        self._neighbour(1, "02:00:00:00:00:99")

    def _neighbour(self, host: int, hardware_address: str) -> None:
        peer = ADDRESSES[1 - host]
        link = self.links[host]
        words = ("lladdr", hardware_address, "dev", link, "nud", "permanent")
        self._on(host, "ip", "neighbour", "replace", peer, *words)

    def slow(self) -> None:
        """Let 100 kbit/s through, after a queue of 300 ms."""
        for host, link in enumerate(self.links):
            words = ("rate", "100kbit", "burst", "2kb", "latency", "300ms")
            self._on(host, "tc", "qdisc", "add", "dev", link, "root", "tbf", *words)

    def lose(self) -> None:
        """Lose 5 of 100 packets, drawn at random, in both directions."""
        rules = (
            "add table inet loss",
            "add chain inet loss input { type filter hook input priority 0; }",
            "add rule inet loss input iifname != lo numgen random mod 100 < 5 drop",
        )
        for host in (0, 1):
            self._on(host, "nft", "; ".join(rules))

    def mend(self) -> None:
        """Put the cable back."""
        self._on(1, "ip", "link", "set", self.links[1], "up")
        # Also what `cut_one_way` has set.
        self._on(1, "ip", "neighbour", "flush", "dev", self.links[1])
        if can_lose():
            for host in (0, 1):
                self._on(host, "nft", "flush", "ruleset")

    def start(self, host: int, script: Path, *words: str, port: int) -> subprocess.Popen[str]:
        """Start a rank of two on a host, with a hostname of its own."""
        environment = {
            **os.environ,
            "RANK": str(host),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": self.links[host],
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": str(ROOT),
            # The output is compared.
            "PYTHONWARNINGS": "ignore",
        }
        inside = f'hostname host-{"ab"[host]} && exec "$@"'
        command = ["unshare", "--uts", "sh", "-c", inside, "sh", sys.executable, str(script)]

        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def rename(self, process: subprocess.Popen[str]) -> None:
        """Give the host of a process another name."""
        words = ["nsenter", "--uts", "--target", str(process.pid), "hostname", "renamed"]
        subprocess.run(words, check=True)


@contextmanager
def two_hosts(name: str) -> Iterator[TwoHosts]:
    """Have two hosts while the context is open."""
    hosts = TwoHosts(name)
    hosts.open()
    try:
        yield hosts
    finally:
        hosts.close()


def ends(processes: Sequence[subprocess.Popen[str]], limit_s: float) -> list[tuple[int, str]]:
    """Wait for processes; return status and output of each. Those still running then are killed."""
    until = time.monotonic() + limit_s
    results = []

    for process in processes:
        try:
            output = process.communicate(timeout=max(0.1, until - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            # A rank that still runs is what the test wants to know: its status says so.
            process.kill()
            output = process.communicate()[0]
        results.append((process.returncode, output))

    return results
