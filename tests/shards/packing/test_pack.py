"""shards/packing/pack.py: the same bytes however the work was cut, interrupted and shared out."""

import dataclasses
import errno
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers.small_corpus import BROKEN, NUM_GOOD, DeadlyMask, digests, draw_corpus, records_of

from shards.errors import PackError
from shards.manifest import read_manifest
from shards.packing.folder import locked
from shards.packing.merging import merge
from shards.packing.pack import PackReport, pack
from shards.records import Corpus, Record

SETTINGS: dict[str, Any] = {"image_policy": "squash:16", "samples_per_shard": 8}
PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return draw_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def root(corpus: Corpus) -> Path:
    return next(corpus.records()).image.parent


@pytest.fixture(scope="module")
def expected(
    corpus: Corpus, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the files that every way of packing must end with."""
    out = tmp_path_factory.mktemp("expected")
    pack(corpus, out, root=root, workers=0, **SETTINGS)
    return digests(out)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_bytes_do_not_depend_on_the_workers(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path, workers: int
) -> None:
    seen: list[tuple[int, int]] = []
    report = pack(
        corpus,
        tmp_path,
        root=root,
        workers=workers,
        progress=lambda done, rejected: seen.append((done, rejected)),
        **SETTINGS,
    )

    assert digests(tmp_path) == expected
    assert (report.packed, report.rejected, report.kept) == (NUM_GOOD, len(BROKEN) + 1, 0)
    assert seen == sorted(seen)
    assert seen[-1] == (NUM_GOOD + len(BROKEN) + 1, len(BROKEN) + 1)


def test_the_manifest_says_what_is_there(corpus: Corpus, root: Path, tmp_path: Path) -> None:
    pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)
    manifest = read_manifest(tmp_path)

    assert manifest.name == "small-train"
    assert manifest.classes == ("cat", "dog")
    assert (manifest.num_samples, manifest.num_rejected, manifest.has_masks) == (30, 4, True)
    assert [shard.samples for shard in manifest.shards] == [7, 7, 7, 7, 2]

    rows = manifest.samples()
    assert set(rows["width"]) == set(rows["height"]) == {16}
    assert list(rows["shard"]) == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7 + [4] * 2


def test_rejected_records_are_named_with_their_reason(
    corpus: Corpus, root: Path, tmp_path: Path
) -> None:
    pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]

    assert [(line["shard"], line["key"], line["source"]) for line in lines] == [
        (0, "r06empty", "r06empty.jpg"),
        (1, "r11odd", "r11odd.png"),
        (2, "r19text", "r19text.jpg"),
        (3, "r25cut", "r25cut.jpg"),
    ]
    assert [line["reason"][:20] for line in lines] == [
        "empty file (0 bytes)",
        "its mask has another",
        "not a picture of a k",
        "cannot be decoded: T",
    ]


# ---- interrupted ----


def in_a_child(work: Callable[[], object]) -> int:
    """Do some work in a forked process and return its status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_write(number: int) -> None:
    """Let this process be killed at its n-th file operation that changes the disk."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at(kill_at: int, corpus: Corpus, root: Path, out: Path, **settings: Any) -> bool:
    """Pack, killed at a file operation; False where the packing came to its end before."""

    def attempt() -> None:
        die_at_write(kill_at)
        pack(corpus, out, root=root, workers=0, **settings)

    status = in_a_child(attempt)
    assert status in (0, -signal.SIGKILL)
    if (out / "manifest.json").exists():
        assert read_manifest(out).num_samples == NUM_GOOD
    return status != 0


def test_killed_at_each_write_it_goes_on_and_ends_with_the_same_bytes(
    corpus: Corpus, root: Path, tmp_path: Path
) -> None:
    """A fresh folder for each file operation of a whole packing, of two shards."""
    settings = SETTINGS | {"samples_per_shard": 17}
    pack(
        corpus,
        tmp_path / "expected",
        root=root,
        workers=0,
        **settings,
    )
    for kill_at in count(1):
        out = tmp_path / str(kill_at)
        if not killed_at(kill_at, corpus, root, out, **settings):
            break
        pack(corpus, out, root=root, workers=0, **settings)
        assert digests(out) == digests(tmp_path / "expected")

    assert kill_at > 25


def test_killed_again_and_again(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """One folder, each attempt killed one file operation later than the one before."""
    attempts = next(n for n in count(1) if not killed_at(n, corpus, root, tmp_path, **SETTINGS))
    assert attempts > 10
    pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)
    assert digests(tmp_path) == expected


def test_killed_with_its_workers_at_random_moments(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """A real process with two workers; none of them outlives it."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from helpers.small_corpus import *\n"
        "from shards.packing.pack import pack\n"
        "if __name__ == '__main__':\n"
        "    root = Path(sys.argv[3])\n"
        "    corpus = Corpus('small', 'train', ('cat', 'dog'), ((0, 0, 0),) * 3, None,\n"
        "                    records_of(root))\n"
        "    pack(corpus, Path(sys.argv[4]), root=root, workers=2, image_policy='squash:16',\n"
        "         samples_per_shard=8)\n"
    )
    script = tmp_path / "pack_small.py"
    script.write_text(code)
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(script),
        str(PROJECT),
        str(PROJECT / "tests"),
        str(root),
        str(out),
    ]
    moments = random.Random()
    for _ in range(2):
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 20
        while (
            not (out / ".packing").exists()
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.8))
        process.kill()
        process.wait()
        assert_session_ends(process.pid)
    subprocess.run(command, check=True, timeout=60)

    assert digests(out) == expected


def assert_session_ends(session: int) -> None:
    for _ in range(400):
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("workers outlive the packer")


def test_a_full_disk_is_one_sentence_and_finished_shards_are_kept(
    corpus: Corpus, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real error of the kernel: no file may grow to the size of the largest shard."""
    reference = tmp_path / "reference"
    out = tmp_path / "out"
    settings = SETTINGS | {"image_policy": "original"}
    pack(corpus, reference, root=root, workers=0, **settings)
    sizes = [shard.bytes for shard in read_manifest(reference).shards]
    limit = max(sizes) - 1

    def attempt() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        pack(corpus, out, root=root, workers=0, **settings)

    assert in_a_child(attempt) == 1
    message = capfd.readouterr().err
    assert message.startswith("PackError: ") and "cannot be written (File too large)" in message
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
    kept = len(list(out.glob("*.tar")))
    assert kept == sizes.index(max(sizes)) > 0
    report = pack(corpus, out, root=root, workers=0, **settings)
    assert report.kept == 8 * kept
    assert digests(out) == digests(reference)


def test_an_unwritable_place_is_one_sentence(corpus: Corpus, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(PackError, match="cannot be written"):
        pack(
            corpus,
            tmp_path / "file" / "out",
            root=root,
            workers=0,
            **SETTINGS,
        )


# ---- again, side by side, changed ----


def test_packed_again_is_a_no_op_and_another_request_is_refused(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    assert not pack(corpus, tmp_path, root=root, workers=0, **SETTINGS).was_finished
    assert pack(corpus, tmp_path, root=root, workers=2, **SETTINGS).was_finished
    with pytest.raises(PackError, match=r'finished .*"squash:16" there, "short:16" asked'):
        pack(
            corpus,
            tmp_path,
            root=root,
            workers=0,
            **(SETTINGS | {"image_policy": "short:16"}),
        )

    other = dataclasses.replace(corpus, classes=("cat",), palette=())
    with pytest.raises(
        PackError, match=r'classes: \["cat", "dog"\] there, \["cat"\] asked for; palette'
    ):
        pack(other, tmp_path, root=root, workers=0, **SETTINGS)
    assert digests(tmp_path) == expected


def test_a_corpus_that_changed_in_between_is_refused(
    root: Path, corpus: Corpus, tmp_path: Path
) -> None:
    def stops() -> Iterator[Record]:
        yield from list(corpus.records())[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(
            dataclasses.replace(corpus, records=stops),
            tmp_path,
            root=root,
            workers=0,
            **SETTINGS,
        )
    assert len(list(tmp_path.glob("*.tar"))) == 2
    fewer = dataclasses.replace(
        corpus,
        records=lambda: iter(list(corpus.records())[1:]),
    )
    with pytest.raises(PackError, match="shard 0 was packed from other pictures"):
        pack(fewer, tmp_path, root=root, workers=0, **SETTINGS)


def test_two_packers_do_not_write_in_one_folder(corpus: Corpus, root: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(PackError, match="another packer works in this folder"):
        pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)

    with locked(tmp_path, (1, 2)):
        for part in (None, (1, 2)):
            with pytest.raises(PackError, match="another packer works in this folder"):
                pack(corpus, tmp_path, root=root, workers=0, part=part, **SETTINGS)
        assert (
            pack(
                corpus,
                tmp_path,
                root=root,
                workers=0,
                part=(2, 2),
                **SETTINGS,
            ).manifest
            is None
        )


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_in_any_order_merge_to_the_same_bytes(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path, num_parts: int
) -> None:
    parts = [(index, num_parts) for index in range(1, num_parts + 1)]
    random.Random(num_parts).shuffle(parts)
    for part in parts:
        if part != parts[0] and num_parts <= 5:  # of 7 parts two have no shard
            with pytest.raises(PackError, match="shards are not packed yet"), locked(tmp_path):
                merge(tmp_path)
        report = pack(
            corpus,
            tmp_path,
            root=root,
            workers=0,
            part=part,
            **SETTINGS,
        )
        assert report.manifest is None
    with locked(tmp_path):
        assert merge(tmp_path).num_samples == NUM_GOOD

    assert digests(tmp_path) == expected


def test_what_parts_have_left_is_packed_without_a_part(
    corpus: Corpus, root: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pack(
        corpus,
        tmp_path,
        root=root,
        workers=0,
        part=(2, 3),
        **SETTINGS,
    )
    report = pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)

    assert report.kept == 10
    assert digests(tmp_path) == expected


def test_merging_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="nothing to merge"):
        merge(tmp_path)


# ---- faults ----


def test_a_record_that_kills_its_worker_is_rejected_and_the_others_are_packed(
    tmp_path: Path,
) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    corpus = draw_corpus(root)
    good = list(corpus.records())[:6]
    deadly = dataclasses.replace(good[2], mask=DeadlyMask())
    records = [*good[:2], deadly, *good[3:]]
    out = tmp_path / "out"
    pack(
        dataclasses.replace(corpus, records=lambda: iter(records)),
        out,
        root=root,
        workers=1,
        **SETTINGS,
    )
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]

    assert [line["key"] for line in rejected] == ["r02"]
    assert "crashed" in rejected[0]["reason"]
    assert read_manifest(out).num_samples == 5


def test_a_disk_that_fails_stops_the_packing_and_drops_nothing(
    corpus: Corpus,
    root: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_bytes
    failures = 2

    def failing(path: Path) -> bytes:
        nonlocal failures
        if path.name == "r10.jpg" and failures > 0:
            failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    monkeypatch.setattr("shards.packing.source_files.READ_RETRY_WAIT_S", 0.0)
    failures = 3
    with pytest.raises(
        PackError, match=r"r10.jpg: cannot be read after 3 tries \(Input/output error\)"
    ):
        pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)
    failures = 2
    pack(corpus, tmp_path, root=root, workers=0, **SETTINGS)
    assert digests(tmp_path) == expected


def test_missing_and_forbidden_files_and_folders_are_rejected(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    out = tmp_path / "out"
    root.mkdir()
    corpus = draw_corpus(root)
    (root / "r07.jpg").unlink()
    (root / "r08.tif").unlink()
    (root / "r08.tif").mkdir()
    (root / "r09.png").unlink()
    (root / "r09.png").symlink_to("r09.png")
    records = [
        Record(f"r0{n}", root / f"r0{n}.{kind}", {})
        for n, kind in ((6, "png"), (7, "jpg"), (8, "tif"), (9, "png"))
    ]
    records += [
        Record("a.b", root / "r06.png", {}),
        Record("k" * 96, root / "r06.png", {}),
    ]
    records += [
        Record(
            "nan",
            root / "r06.png",
            {"classes": float("nan")},
        )
    ]
    pack(
        dataclasses.replace(corpus, records=lambda: iter(records)),
        out,
        root=root,
        workers=0,
        **SETTINGS,
    )
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    reasons = [
        "missing file",
        "not a regular file",
        "a link that",
        "its key",
        "its key",
        "its label",
    ]

    assert [
        line["reason"].startswith(reason) for line, reason in zip(lines, reasons, strict=True)
    ] == [True] * 6


def test_nothing_to_pack_is_refused(corpus: Corpus, root: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no pictures"):
        pack(
            dataclasses.replace(corpus, records=lambda: iter(())),
            tmp_path / "a",
            root=root,
            workers=0,
        )

    bad = [record for record in corpus.records() if record.key in BROKEN]
    with pytest.raises(PackError, match=r"all 3 records were rejected; rejected.jsonl"):
        pack(
            dataclasses.replace(corpus, records=lambda: iter(bad)),
            tmp_path / "b",
            root=root,
            workers=0,
        )
    assert len((tmp_path / "b" / "rejected.jsonl").read_text().splitlines()) == 3


def test_a_key_that_comes_twice_is_refused(corpus: Corpus, root: Path, tmp_path: Path) -> None:
    twice = dataclasses.replace(
        corpus,
        records=lambda: iter([next(corpus.records())] * 2),
    )
    with pytest.raises(PackError, match="key 'r00' comes twice"):
        pack(twice, tmp_path, root=root, workers=0)


@pytest.mark.parametrize(
    "values",
    [
        {"samples_per_shard": 0},
        {"workers": -1},
        {"part": (0, 2)},
        {"part": (3, 2)},
        {"jpeg_quality": 101},
    ],
)
def test_settings_out_of_range_are_refused(
    corpus: Corpus, root: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    with pytest.raises(PackError, match=next(iter(values))):
        pack(corpus, tmp_path / "out", root=root, **values)
    assert not (tmp_path / "out").exists()


class Watched:
    """A record whose life can be watched."""

    mask = None
    fault = ""
    dropped = ()
    label_size = None
    label: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def __init__(self, number: int, image: Path) -> None:
        self.key = f"k{number}"
        self.image = image


def test_no_more_records_are_held_than_two_shards(
    corpus: Corpus, root: Path, tmp_path: Path
) -> None:
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    most = 0

    def records() -> Iterator[Watched]:
        nonlocal most
        for number in range(400):
            record = Watched(number, root / "r00.png")
            alive.add(record)
            most = max(most, len(alive))
            yield record

    gc.collect()
    many = dataclasses.replace(corpus, records=records)  # type: ignore[arg-type]
    report: PackReport = pack(many, tmp_path, root=root, workers=0, **SETTINGS)
    assert report.packed == 400
    assert most <= 2 * SETTINGS["samples_per_shard"] + 1


def test_corpus_of_the_tests_is_streamed(root: Path) -> None:
    assert [record.key for record in records_of(root)()] == sorted(
        record.key for record in records_of(root)()
    )
