import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.http_server import FolderServer, serve
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.loader import Loader
from shards.loading.members import BadSampleError, MemberSpec, read_members
from shards.loading.read_ahead import ReadAhead
from shards.loading.shard_set import ShardSet, Storage, open_shards
from shards.storage import remote, transfer
from shards.storage.cache import Cache, open_in_use
from shards.storage.retries import RetryPolicy
from shards.storage.shard_files import ShardFiles

pytest.importorskip(
    "aiohttp", reason="fsspec needs aiohttp for http(s): pip install colorgan[remote]"
)

SHARDS = [f"tiny-train-{number:06d}.tar" for number in range(5)]
QUICK = RetryPolicy(
    num_tries=3,
    wait_s=0.01,
    stall_s=0.3,
    base_s=5.0,
)
LARGE = int(1e9)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(
        tmp_path_factory.mktemp("packed") / "set", [tiny_sample(index) for index in range(40)]
    )


@pytest.fixture
def server(packed: Path) -> Iterator[FolderServer]:
    with serve(packed) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", LARGE)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def open_set(folder: Path | str, cache: Cache | None = None) -> ShardSet:
    if cache is None:
        return open_shards([folder])
    return open_shards(
        [folder],
        Storage(cache.folder, cache.limit_bytes / 1e9, retry=QUICK),
    )


def batches(
    folder: Path | str,
    cache: Cache | None = None,
) -> list[torch.Tensor]:
    loader = Loader(
        open_set(folder, cache), image_size=32, global_batch_size=8, micro_batch_size=4, seed=3
    )
    stream = loader.train_batches(16)
    out = []
    for _ in range(7):  # over an epoch's edge
        for batch in next(stream):
            out += [batch.lab_B3HW, batch.sample_ids_B]

    out += [batch.lab_B3HW for batch in loader.eval_batches()]

    assert not loader.replaced

    loader.close()

    return out


def read(shards, index: int, files: ShardFiles | None = None) -> bytes:
    row = shards.rows(np.array([index]))[0]
    own = ShardFiles()

    try:
        return read_members(
            shards,
            row,
            MemberSpec(retry=QUICK),
            (files or own).read_at,
        ).image
    finally:
        own.close()


def fetched(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.glob("*/*.tar"))


def test_same_batches_from_a_url_and_from_a_folder(
    packed: Path, server: FolderServer, cache: Cache
) -> None:
    ours = batches(packed)
    theirs = batches(server.url, cache)

    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {name: server.requests[name] for name in SHARDS} == dict.fromkeys(SHARDS, 1)
    assert open_set(server.url + "/", cache).digest == open_shards([packed]).digest

    batches(server.url, cache)

    assert server.requests["samples.npy"] == 1
    assert all(server.requests[name] == 1 for name in SHARDS)


def test_any_filesystem_of_fsspec_will_do(
    packed: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr(
        transfer, "SCHEMES", ("memory",)
    )  # stands for s3: files with a size, opened and read
    store = fsspec.filesystem("memory")
    for path in packed.iterdir():
        store.pipe_file(
            f"/bucket/set/{path.name}",
            path.read_bytes(),
        )
    shards = open_set("memory://bucket/set", cache)
    assert [read(shards, index) for index in range(40)] == [
        tiny_sample(index).image for index in range(40)
    ]
    store.rm("/bucket", recursive=True)
    with pytest.raises(ManifestError, match=r"memory://bucket/set/manifest.json: .*no such file"):
        open_set("memory://bucket/set", cache)


@pytest.mark.parametrize(
    "fault",
    [500, 503, 429, "break", "wrong", "more", "slow"],
)
def test_fault_that_passes(server: FolderServer, cache: Cache, fault: int | str) -> None:
    server.faults = {
        SHARDS[0]: deque([fault]),
        "samples.npy": deque([fault]),
    }

    assert (
        read(
            open_set(server.url, cache),
            0,
        )
        == tiny_sample(0).image
    )
    assert server.requests[SHARDS[0]] == server.requests["samples.npy"] == 2


@pytest.mark.parametrize(
    ("fault", "reason", "num_requests"),
    [
        (404, "no such file there", 1),
        (403, "HTTP 403", 1),
        (500, "HTTP 500; try 3", 3),
        ("break", "", 3),
        ("wrong", "its sha256 is .*, the manifest has .*; try 3", 3),
        ("more", r"more than the \d+ bytes that it may have", 3),
        ("file:///etc/passwd", "", None),
    ],
)
def test_fault_that_stays(
    server: FolderServer,
    cache: Cache,
    fault: int | str,
    reason: str,
    num_requests: int | None,
) -> None:
    shards = open_set(server.url, cache)
    server.faults[SHARDS[1]] = deque([fault] * 9)
    for index in (8, 9, 15):  # the failure is remembered: its samples do not each wait for it
        with pytest.raises(BadSampleError, match=f"{SHARDS[1]}: cannot be fetched .*{reason}"):
            read(shards, index)

    assert num_requests in (None, server.requests[SHARDS[1]])
    assert read(shards, 0) == tiny_sample(0).image
    assert not list(cache.folder.glob("*/*.part"))

    server.faults.clear()
    remote_folder = remote.remote_of(shards.shard_paths[1])

    assert remote_folder is not None

    remote_folder.forget_failures()  # as after a minute

    assert read(shards, 8) == tiny_sample(8).image


def test_redirect_to_http_is_followed(packed: Path, server: FolderServer, cache: Cache) -> None:
    with serve(packed) as other:
        server.faults[SHARDS[0]] = deque([f"{other.url}/{SHARDS[0]}"])
        assert (
            read(
                open_set(server.url, cache),
                0,
            )
            == tiny_sample(0).image
        )
        assert other.requests[SHARDS[0]] == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/set", "ftp:// is not supported"),
        ("file:///etc", "file:// is not supported"),
        ("http://user:secret@127.0.0.1/set", "no user, password or query"),
        ("http://127.0.0.1/set?key=secret", "no user, password or query"),
        ("http://127.0.0.1:9/set", "cannot be fetched"),
    ],
)
def test_url_that_is_refused(cache: Cache, url: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as refused:
        open_set(url, cache)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "../x.tar",
        "/etc/x.tar",
        "..",
        "a b.tar",
        ".x.tar",
        "manifest.json",
        "x.tar?y",
        "%2e%2e.tar",
        SHARDS[0],
    ],
)
def test_hostile_names_are_refused(tmp_path: Path, packed: Path, cache: Cache, name: str) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["shards"][1]["file"] = name
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "manifest.json").write_text(json.dumps(manifest))

    with serve(hostile) as server, pytest.raises(ManifestError, match="name"):
        open_set(server.url, cache)
    assert not cache.folder.exists()


def test_bound_is_kept_and_files_in_use_stay(
    packed: Path, server: FolderServer, tmp_path: Path
) -> None:
    sizes = [(packed / name).stat().st_size for name in SHARDS]
    table = (packed / "samples.npy").stat().st_size
    cache = Cache(tmp_path / "cache", sum(sizes) + table)
    shards = open_set(server.url, cache)
    held = ShardFiles()
    files = ShardFiles()
    for index in (0, 8, 16):
        read(shards, index, held if index == 8 else files)

    files.close()

    with serve(packed) as other:  # the same set from elsewhere has a place of its own
        second = open_set(other.url, cache)
        for index in (0, 8, 16, 24, 32):
            read(second, index)
            used = sum(
                path.stat().st_size
                for path in cache.folder.glob("*/*")
                if path.suffix in (".tar", ".npy")
            )
            assert used <= cache.limit_bytes
        assert shards.shard_paths[1].exists()
        assert not shards.shard_paths[0].exists()

    assert read(shards, 8, held) == tiny_sample(8).image
    assert read(shards, 0) == tiny_sample(0).image
    assert server.requests[SHARDS[0]] == 2


def test_full_cache(packed: Path, server: FolderServer, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"set data\.cache_gb to"):
        open_set(server.url, Cache(tmp_path / "small", 10_000))

    in_use = [
        open_in_use(write_file(tmp_path / "cache" / "other" / f"{number}.tar"))
        for number in range(3)
    ]

    total = sum(path.stat().st_size for path in packed.iterdir())
    shards = open_set(
        server.url,
        Cache(tmp_path / "cache", total + 10),
    )
    folder = remote.remote_of(shards.shard_paths[0])

    assert folder is not None

    for name in SHARDS:
        folder.fetch(name, needed=False)

    assert len(list((tmp_path / "cache").glob("*/tiny*.tar"))) < len(SHARDS)
    assert read(shards, 39) == tiny_sample(39).image

    list(map(os.close, in_use))


def write_file(path: Path, size: int = 20_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


FETCH = """
import sys, numpy as np
from pathlib import Path
from shards.loading.members import MemberSpec, read_members
from shards.loading.shard_set import Storage, open_shards
from shards.storage.shard_files import ShardFiles
shards, files = open_shards([sys.argv[1]], Storage(Path(sys.argv[2]))), ShardFiles()
for row in shards.rows(np.arange(40)):
    read_members(shards, row, MemberSpec(), files.read_at)
"""


def start(server: FolderServer, cache: Cache) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            FETCH,
            server.url,
            str(cache.folder),
        ]
    )


def test_processes_share_one_download(server: FolderServer, cache: Cache) -> None:
    server.slow_s = 0.1
    processes = [start(server, cache) for _ in range(2)]
    assert [process.wait(30) for process in processes] == [0, 0]
    assert server.requests["samples.npy"] == 1
    assert [server.requests[name] for name in SHARDS] == [1] * 5


def test_killed_during_a_fetch_and_started_again(server: FolderServer, cache: Cache) -> None:
    server.faults[SHARDS[2]] = deque(["slow"])
    process = start(server, cache)
    while not (parts := list(cache.folder.glob("*/*2.tar.part"))):
        time.sleep(0.01)  # pytest's timeout ends a wait for nothing

    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert fetched(cache) == SHARDS[:2]

    locks = parts[0].with_suffix(".lock")
    with locks.open("r+") as lock:  # somebody else at it: not swept
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.sweep()
        assert parts[0].exists()

    shards = open_set(server.url, cache)

    assert not parts[0].exists()
    assert [read(shards, index) for index in range(40)] == [
        tiny_sample(index).image for index in range(40)
    ]
    assert [server.requests[name] for name in SHARDS] == [1, 1, 2, 1, 1]


def test_slow_fetch_is_not_taken_for_a_stalled_read(server: FolderServer, cache: Cache) -> None:
    shards = open_set(server.url, cache)
    files = ShardFiles()
    server.slow_s = 0.25
    reads = ReadAhead(
        shards,
        MemberSpec(retry=RetryPolicy(stall_s=0.05)),
        1,
        files.read_at,
    )
    results = reads.read(np.array([0, 8])).collect()
    reads.close()

    assert [getattr(result, "image", result) for result in results] == [
        tiny_sample(i).image for i in (0, 8)
    ]


def test_next_shards_are_fetched_ahead(server: FolderServer, cache: Cache) -> None:
    loader = Loader(
        open_set(server.url, cache), image_size=32, global_batch_size=4, micro_batch_size=4
    )
    evaluation = loader.eval_batches()
    next(evaluation)

    while len(fetched(cache)) < 3:
        time.sleep(0.01)  # pytest's timeout ends a wait for nothing

    evaluation.close()
    loader.close()


def test_local_folders_need_no_fsspec(packed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shards.loading.shard_set import open_shards; "
        f"open_shards([Path({str(packed)!r})]); print('fsspec' in sys.modules)"
    )
    code = f"from shards.storage.transfer import *; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "False"
