"""Loaders side by side: the same photos, one run, medians of alternated repeats, ratios printed.

    python benchmarks/loader.py [--photos DIR] [--seconds 4] [--repeats 7] [--peers
    benchmarks/.peers/bin/python]

Two data sets are made of the photos: `squash`, packed at 256x256 (4:4:4, quality 95), and
`original`, packed as they are. Rows run one at a time, in turn, each in a process that stays (see
benchmarks/loader_rows.py); what moves the whole machine from one minute to the next moves all rows.
A row whose process ends, for want of a library, is reported with its last words. The peers need an
environment of their own:

    python -m venv benchmarks/.peers && benchmarks/.peers/bin/pip install -r benchmarks/peers.txt
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from webdataset import ShardWriter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before an installed `datasets`

from shards.loading.members import MemberSpec, read_members  # noqa: E402
from shards.loading.shard_set import open_shards  # noqa: E402
from shards.packing.indexing import index_shards  # noqa: E402
from shards.packing.pack import pack  # noqa: E402
from shards.records import Corpus, Record  # noqa: E402
from shards.storage.shard_files import ShardFiles  # noqa: E402

OURS = ("decode", "colorgan", "indexed", "dali")
PEERS = ("paper", "opencv", "webdataset", "streaming", "ffcv")
KINDS = {"squash": "squash:256", "original": "original"}
TARGETS = (
    (
        "packed at the training size, against the paper's way on the photos",
        "squash",
        "original/paper",
        7.0,
    ),
    (
        "packed at the training size, against the paper's way on the same",
        "squash",
        "squash/paper",
        2.5,
    ),
    ("packed at the training size, against the fastest peer", "squash", "fastest", 1.2),
    ("packed at the training size, against decode alone", "squash", "squash/decode", 0.7),
    ("photos, against the paper's way", "original", "original/paper", 1.8),
    ("photos, against the fastest peer", "original", "fastest", 1.0),
)


@dataclass
class Row:
    """A loader in its process, and the figures it has given."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    figures: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    failure: str = ""

    def ask(self, request: str | None) -> dict[str, float]:
        """Send a line, wait for the answer; {} once the process is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None

        if request is not None and self.process.poll() is None:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()

        # Loaders also print words of their own: answers are the lines of JSON.
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer

        # The last line of a traceback is its reason.
        self.failure = (self.log.read_text().strip().splitlines() or ["no word"])[-1][:150]

        return {}


def main() -> None:
    """Measure every row in turn and print the table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        photos = _photos(arguments.photos)[: arguments.photos_at_most]
        for kind, policy in KINDS.items():
            _prepare(work / kind, photos, policy)
        rows = [
            _start(f"{kind}/{row}", work, arguments)
            # Each row with both kinds of data, in processes of their own from the start.
            for kind in KINDS
            for row in (*OURS, *PEERS)
            if not arguments.rows or row in arguments.rows
        ]
        try:
            for row in rows:
                # All have started before the first is measured.
                row.ask(None)
            # In turn: what slows the machine for a minute slows every row.
            for _ in range(arguments.repeats):
                for row in rows:
                    if not row.failure and (answer := row.ask(str(arguments.seconds))):
                        row.figures.append(answer["images_per_s"])
                        row.cpu_ms.append(answer["cpu_ms"])
        finally:
            for row in rows:
                # Killed: most loaders end their workers slowly.
                row.process.kill()
                row.process.wait()

    _report(rows, len(photos), arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, default=ROOT / "../shared/data", help="folder of JPEG photos"
    )
    parser.add_argument("--photos_at_most", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=2, help="worker processes, or decoding threads"
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        choices=[*OURS, *PEERS],
        help="only these",
    )
    parser.add_argument("--peers", type=Path, default=ROOT / "benchmarks/.peers/bin/python")
    parser.add_argument(
        "--work", type=Path, default=None, help="where the data sets are made (a temporary folder)"
    )

    return parser.parse_args()


def _photos(folder: Path) -> list[Path]:
    """JPEG photos in a mixed order: corpora differ in size and quality."""
    # Sorted first: the order of a disk would make each run another benchmark.
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        sys.exit(f"{folder}: no JPEG photos; give a folder with --photos.")
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


def _prepare(folder: Path, photos: list[Path], policy: str) -> None:
    """Pack the photos; write each packed image as a file and into foreign shards: same bytes."""

    def records() -> Iterator[Record]:
        for number, path in enumerate(photos):
            yield Record(f"p{number:06d}", path, {"classes": [], "objects": []})

    corpus = Corpus(
        "photos",
        "all",
        (),
        (),
        len(photos),
        records,
    )
    pack(
        corpus,
        folder / "shards",
        root=photos[0].anchor,
        image_policy=policy,
        workers=2,
        # Several shards, also of few photos: loaders mix them.
        samples_per_shard=250,
    )
    (folder / "files").mkdir()
    (folder / "elsewhere").mkdir()
    shards, files = open_shards([folder / "shards"]), ShardFiles()
    pattern = str(folder / "elsewhere" / "%06d.tar")
    with ShardWriter(pattern, maxcount=250, verbose=0) as elsewhere:
        for index, row in enumerate(shards.rows(np.arange(shards.num_samples))):
            # The packed bytes, so that all loaders decode the very same JPEG files.
            image = read_members(shards, row, MemberSpec(), files.read_at).image
            (folder / "files" / f"{index:06d}.jpg").write_bytes(image)
            elsewhere.write({"__key__": f"{index:06d}", "jpg": image, "txt": b"a caption"})
    files.close()

    # In place: `indexed` and `webdataset` read the same files.
    index_shards(str(folder / "elsewhere"), folder / "indexed", workers=2)


def _start(name: str, work: Path, arguments: argparse.Namespace) -> Row:
    row = name.split("/")[1]
    # Peers pin other versions of NumPy and torch.
    python = sys.executable if row in OURS else str(arguments.peers)
    log = work / (name.replace("/", "-") + ".log")
    command = [
        python,
        str(ROOT / "benchmarks/loader_rows.py"),
        name,
        str(work),
        str(arguments.threads),
    ]

    environment = (
        # {"OMP_NUM_THREADS": "1"} | The workers are the parallelism that is compared.
        os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(ROOT)} if row in OURS else {})
    )
    with log.open("w") as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )
        except FileNotFoundError:
            sys.exit(
                f"{python}: no such interpreter; make the peers' environment as --help says, "
                "or name --rows."
            )

    return Row(name, process, log)


def _report(rows: list[Row], num_photos: int, arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"\n{num_photos} photos, {arguments.threads} threads or workers, {cores} cores, "
        f"{platform.machine()};"
    )

    print(
        f"median of {arguments.repeats} alternated measurements of {arguments.seconds:g} s each. "
        "CPU ms per image,"
    )

    print("of all processes and threads of a loader together, depend less on the machine's load.\n")
    # Medians: one repeat beside other work must not decide.
    medians = {row.name: statistics.median(row.figures) for row in rows if row.figures}
    columns = ("images/s", "lowest", "highest", "x paper, photos", "x colorgan", "CPU ms")
    print(f"{'data/loader':<22}" + "".join(f"{column:>{len(column) + 2}}" for column in columns))

    for row in rows:
        if not row.figures:
            print(f"{row.name:<22}  not run: {row.failure}")
            continue
        median, ours = medians[row.name], medians.get(row.name.split("/")[0] + "/colorgan")
        paper = medians.get("original/paper")
        cells = [f"{value:.0f}" for value in (median, min(row.figures), max(row.figures))]
        cells += [
            _ratio(median, paper),
            _ratio(median, ours),
            f"{statistics.median(row.cpu_ms):.2f}",
        ]
        pairs = zip(columns, cells, strict=True)
        print(f"{row.name:<22}" + "".join(f"{cell:>{len(column) + 2}}" for column, cell in pairs))

    print()

    for text, kind, other, target in TARGETS:
        # Only rows that ran: a missing peer is no target reached.
        ours, theirs, name = _pair(medians, kind, other)
        if ours and theirs:
            print(f"{text} ({name}): {ours / theirs:.2f}x, to reach {target}x")


def _pair(
    medians: dict[str, float], kind: str, other: str
) -> tuple[float | None, float | None, str]:
    if other == "fastest":
        peers = {name: value for name, value in medians.items() if name.startswith(kind + "/")}
        # Of the others alone: our own rows and plain decoding are no peers.
        peers = {
            name: v
            for name, v in peers.items()
            if not name.endswith(("/colorgan", "/decode", "/indexed"))
        }
        other = max(
            peers,
            key=lambda name: peers[name],
            default="",
        )
    return medians.get(f"{kind}/colorgan"), medians.get(other), other


def _ratio(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else "-"


if __name__ == "__main__":
    main()
