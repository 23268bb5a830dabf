"""Train through a seeded storm of faults; the weights must be those of a run that was left alone.

    python benchmarks/soak.py [--minutes 120] [--images 4096] [--seed 0]

The real command runs on two ranks that torchrun starts, DDP and ZeRO-2 in turn, on images drawn
here. At random moments a fault comes: a rank killed or stopped (for a while, or for good), a signal
to the launcher or its death, a full disk under the run folder, read errors from the disk of the
shards, or a damaged shard. The fault is mended, the same command goes on, until the run has ended.
Counted per fault: how runs ended and how long the last process lived. Checked: no process is left a
minute after its launcher, the final weights, average and optimizers equal the calm run's bit for
bit, and no process's memory grows. Needs root (a file system of 64 MB is mounted under each run)
and gcc (a library that makes reads fail).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kills import difference, make_data

PROJECT = Path(__file__).resolve().parent.parent
TORCHRUN = Path(sys.executable).with_name("torchrun")
LEFT_BEHIND_S = 60.0
# Of processes that lived so long after their first validation, the most memory of the last fifth of
# that time is compared with what they had then: all that is loaded once has been loaded.
SETTLED_S = 30.0
VALIDATION = b'"kind": "validate"'  # in a line of the run's log

# Reads of the shards' folder fail with EIO while the flag exists.
FAILING_READS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef ssize_t (*reader)(int, void *, size_t, off_t);
ssize_t pread64(int fd, void *to, size_t size, off_t at) {
    char link[64], path[4096];
    const char *data = getenv("SOAK_DATA"), *flag = getenv("SOAK_FLAG");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0 && data && flag && !strncmp(path, data, strlen(data)) && !access(flag, F_OK)) {
        errno = EIO;
        return -1;
    }
    return ((reader)dlsym(RTLD_NEXT, "pread64"))(fd, to, size, at);
}
"""


@dataclass
class Storm:
    """What has happened so far."""

    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    runs: int = 0
    slowest_leave_s: float = 0.0
    growth: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the figures as lines."""
        grown = sorted(self.growth)
        lines = [
            f"{self.runs} runs ended, {self.faults.total()} faults, {self.restarts} restarts; "
            f"the last process left {self.slowest_leave_s:.1f} s after its launcher",
            *(f"  {name}: {count}" for name, count in sorted(self.faults.items())),
            "statuses of the launcher, or that the run went on:",
            *(f"  {name}: {count}" for name, count in sorted(self.ends.items())),
        ]
        if grown:
            middle, most = grown[len(grown) // 2], grown[-1]
            lines.append(
                f"memory of {len(grown)} processes, {SETTLED_S:.0f} s or more after their first "
                f"validation against just after it: median {middle:+.1%}, largest {most:+.1%}"
            )
        return "\n".join([*lines, *(f"WRONG: {each}" for each in self.wrong)])


@dataclass
class Place:
    """Where runs are, and what they read."""

    folder: Path
    data: Path
    library: Path
    images: int

    @property
    def flag(self) -> Path:
        """While this file exists, reads fail."""
        return self.folder / "reads-fail"

    def command(self, run: Path, strategy: str) -> list[str]:
        """Return the words of a run on two ranks."""
        if strategy == "ddp":
            start = [str(TORCHRUN), "--standalone", "--nproc-per-node", "2"]
        else:
            start = [str(TORCHRUN.with_name("accelerate")), "launch", "--use_deepspeed"]
            start += ["--zero_stage", "2", "--num_processes", "2", "--num_machines", "1"]
            start += ["--gradient_accumulation_steps", "1"]
        small = {
            "network.image_size": 32,
            "network.width": 4,
            "discriminator.width": 4,
            "discriminator.num_strided_blocks": 2,
            "batch.global_batch_size": 8,
            "data.decode_threads": 1,
            # A sample that cannot be read would be replaced: other weights than the calm run's.
            "data.max_bad_share": 0,
            "launch.torch_threads": 1,
            "launch.timeout_s": 40,
            "output.log_every_images": 32,
            "output.save_every_images": 256,
            "output.validate_every_images": 1024,
            "output.num_pictures": 2,
            "ema_half_life_images": 200,
            "images": self.images,
        }
        words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
        folders = ["--data.train", str(self.data), "--data.val", str(self.data)]
        script = str(PROJECT / "launcher" / "pretrain.py")
        return [*start, script, "--run_dir", str(run), *folders, *words]

    def start(self, run: Path, strategy: str) -> subprocess.Popen[bytes]:
        """Start a run; its output goes behind that of earlier starts."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "CUDA_VISIBLE_DEVICES": "-1",
            "ACCELERATE_USE_CPU": "true",
            "LD_PRELOAD": str(self.library),
            "SOAK_DATA": str(self.data),
            "SOAK_FLAG": str(self.flag),
        }
        with (self.folder / f"{run.parent.name}.txt").open("ab") as output:
            return subprocess.Popen(
                self.command(run, strategy),
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )


def processes_of(run: Path) -> dict[int, str]:
    """Return the living processes whose command line names the run, with their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if os.fsencode(run) in words.split(b"\0") and state not in "ZX":
            found[int(folder.name)] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def ranks_of(run: Path) -> list[int]:
    """Return the processes of the run that train: the launcher's children."""
    launchers = ("torchrun", "accelerate", "deepspeed")
    return [
        process
        for process, words in processes_of(run).items()
        if not any(name in " ".join(words.split()[:4]) for name in launchers)
    ]


@dataclass(frozen=True)
class _Sample:
    """What a process had at a moment, and how many validations the run's log told of by then."""

    at: float
    pages: int
    validations: int


class Memory:
    """The resident memory of the ranks of a run, in bytes."""

    def __init__(self) -> None:
        self._seen: dict[int, list[_Sample]] = {}

    def look(self, run: Path) -> None:
        """Note what every rank has now."""
        log = run / "log.jsonl"
        validations = log.read_bytes().count(VALIDATION) if log.exists() else 0
        for process in ranks_of(run):
            try:
                pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
            sample = _Sample(time.monotonic(), pages, validations)
            self._seen.setdefault(process, []).append(sample)

    def growth(self) -> list[float]:
        """Return how much each long-lived rank grew from its first validation to its end."""
        shares = []
        for samples in self._seen.values():
            # The run's log is older than a process that resumed it.
            before = samples[0].validations
            settled = [sample for sample in samples if sample.validations > before]
            if not settled or settled[-1].at - settled[0].at < SETTLED_S:
                continue

            # Processes that end give memory back: the largest counts.
            fifth = 0.2 * (settled[-1].at - settled[0].at)
            late = [sample.pages for sample in settled if sample.at >= settled[-1].at - fifth]
            shares.append(max(late) / settled[0].pages - 1)
        return shares


@contextmanager
def full_disk(run: Path) -> Iterator[None]:
    """Leave no byte on the file system of the run."""
    filler = run.parent / "filler"
    try:
        with filler.open("wb", buffering=0) as stream:
            block = bytes(1 << 16)
            while True:
                stream.write(block)
    except OSError:
        pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def failing_reads(place: Place) -> Iterator[None]:
    """Let reads of the shards fail."""
    place.flag.touch()
    try:
        yield
    finally:
        place.flag.unlink()


@contextmanager
def damaged_shard(place: Place) -> Iterator[None]:
    """Overwrite the middle half of a shard."""
    shard = random.choice(sorted(place.data.glob("*.tar")))
    whole = shard.read_bytes()
    quarter = len(whole) // 4
    with shard.open("r+b") as stream:
        stream.seek(quarter)
        stream.write(random.randbytes(2 * quarter))
    try:
        yield
    finally:
        shard.write_bytes(whole)


@contextmanager
def stopped_rank(run: Path) -> Iterator[None]:
    """Stop a rank and let it go on."""
    ranks = ranks_of(run)
    rank = random.choice(ranks) if ranks else 0
    try:
        if rank:
            os.kill(rank, signal.SIGSTOP)
        yield
    finally:
        if rank in ranks_of(run):
            os.kill(rank, signal.SIGCONT)


def wait(process: subprocess.Popen[bytes], run: Path, memory: Memory, seconds: float) -> bool:
    """Wait so long, or until the launcher has ended; return whether it has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        memory.look(run)
        time.sleep(0.5)
    return process.poll() is not None


def lasting(place: Place, run: Path) -> dict[str, tuple[Callable[[], object], float]]:
    """Return the faults that last, with how many seconds at most."""
    return {
        "rank stopped for 6 s": (lambda: stopped_rank(run), 6),
        "rank stopped for good": (lambda: stopped_rank(run), 150),
        "disk full": (lambda: full_disk(run), 15),
        "reads fail": (lambda: failing_reads(place), 8),
        "shard damaged": (lambda: damaged_shard(place), 12),
    }


SIGNALS = {
    "rank killed": signal.SIGKILL,
    "launcher SIGTERM": signal.SIGTERM,
    "launcher SIGINT": signal.SIGINT,
    "launcher SIGHUP": signal.SIGHUP,
    "launcher killed": signal.SIGKILL,
}


def strike(
    place: Place, run: Path, process: subprocess.Popen[bytes], memory: Memory, storm: Storm
) -> None:
    """Bring one fault over the run and wait for what follows."""
    faults = lasting(place, run)
    name = random.choice([*faults, *SIGNALS])
    storm.faults[name] += 1
    if name in faults:
        make, seconds = faults[name]
        with make():  # type: ignore[attr-defined]
            wait(process, run, memory, seconds)
        ended = wait(process, run, memory, 3)
    else:
        ranks = ranks_of(run)
        target = random.choice(ranks) if name.startswith("rank") and ranks else process.pid
        os.kill(target, SIGNALS[name])
        ended = wait(process, run, memory, 90)
    storm.ends[f"{name}: {process.returncode if ended else 'went on'}"] += 1


def check_none_left(run: Path, storm: Storm) -> None:
    """Wait for the last process of a run whose launcher has ended."""
    began = time.monotonic()
    while left := processes_of(run):
        if time.monotonic() > began + LEFT_BEHIND_S:
            storm.wrong.append(f"left behind: {left}")
            for process in left:
                os.kill(process, signal.SIGKILL)
            return
        time.sleep(0.2)
    storm.slowest_leave_s = max(storm.slowest_leave_s, time.monotonic() - began)


def weather(place: Place, run: Path, strategy: str, storm: Storm, until: float) -> None:
    """Take a run to its end, through faults until the time is over."""
    memory = Memory()
    while True:
        process = place.start(run, strategy)
        while not wait(process, run, memory, random.uniform(4, 40)) and time.monotonic() < until:
            strike(place, run, process, memory, storm)
            if process.poll() is not None:
                break
        status = process.wait()
        check_none_left(run, storm)
        if status == 0:
            break
        storm.restarts += 1
        print(f"{time.strftime('%H:%M:%S')} {run.parent.name}: status {status}", flush=True)
    storm.growth += memory.growth()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Have a file system of 64 MB while the context is open."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def soak(place: Place, minutes: float) -> Storm:
    """Run after run through the storm until the time is over; each is compared."""
    storm = Storm()
    calm = {}
    for strategy in ("ddp", "zero2"):
        calm[strategy] = place.folder / f"calm-{strategy}" / "run"
        began, quiet = time.monotonic(), Memory()
        process = place.start(calm[strategy], strategy)
        while not wait(process, calm[strategy], quiet, 60):
            pass
        if process.returncode:
            raise SystemExit(f"the calm run ended with status {process.returncode}")
        storm.growth += quiet.growth()
        print(f"calm run of {strategy}: {time.monotonic() - began:.0f} s", flush=True)

    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until and not storm.wrong:
        strategy = ("ddp", "zero2")[storm.runs % 2]
        with small_disk(place.folder / f"storm-{storm.runs}") as disk:
            weather(place, disk / "run", strategy, storm, until)
            if differs := difference(disk / "run", calm[strategy]):
                storm.wrong.append(f"run {storm.runs} of {strategy} differs: {differs}")
        storm.runs += 1
        print(storm.text(), flush=True)
    return storm


def main() -> int:
    """Storm, count, print; status 1 when anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--images", type=int, default=4096, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)

    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder = Path(name)
        library = folder / "failing_reads.so"
        words = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
        subprocess.run(words, input=FAILING_READS.encode(), check=True)
        place = Place(folder, make_data(folder), library, given.images)
        storm = soak(place, given.minutes)
    return bool(storm.wrong)


if __name__ == "__main__":
    raise SystemExit(main())
