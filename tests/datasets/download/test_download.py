"""Downloads from a local server that breaks off, refuses and lies; archives that are hostile."""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.download.archives import COCO, COCO_ANNOTATIONS, VOC, Archive, archives_for
from datasets.download.download import FOLDER, RetryPolicy, download, is_there
from datasets.download.unpack import unpack
from datasets.errors import DownloadError

# As many tries as matter, without the waits between them.
QUICK = RetryPolicy(tries=3, wait_s=0.0, timeout_s=0.5)
PROJECT = Path(__file__).parents[3]
# Random, so that no archive gets smaller by packing, and a cut lies within it.
PAYLOAD = np.random.default_rng(0).bytes(300_000)


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES = {"pictures/a/1.jpg": PAYLOAD, "pictures/a/2.jpg": b"two", "pictures/3.jpg": b""}


@dataclass
class Server:
    """The local server's answers, one per request, then plain ones."""

    url: str
    content: bytes
    answers: list[Any] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def archive(self, kind: str = "tar") -> Archive:
        digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"
        return Archive(
            f"{self.url}/pictures.{kind}", len(self.content), digest, "pictures", "pictures/a/1.jpg"
        )


class Handler(BaseHTTPRequestHandler):
    """Answers as it is told to.

    An int is a status, "cut" breaks off halfway, "stall" sends half and waits, "plain" knows no
    ranges, "shifted" sends another range than asked, "longer" never stops, "page" is a login page.
    """

    server: Any

    def do_GET(self) -> None:
        state: Server = self.server.state
        # Kept, as the tests count what was asked for.
        asked = self.headers.get("Range")
        state.ranges.append(asked)
        # One request each; the last tries succeed.
        answer = state.answers.pop(0) if state.answers else "serve"
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content = state.content
        start = 0

        if answer == "page":
            content = b"<html>please log in</html>"
        elif asked and answer != "plain":
            start = int(re.findall(r"\d+", asked)[0]) + (7 if answer == "shifted" else 0)
            # As the standard says, and as a complete part would get it.
            if start >= len(content):
                self.send_error(416)
                return

        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range",
                f"bytes {start}-{len(content) - 1}/{len(content)}",
            )
        if answer != "longer":
            self.send_header(
                "Content-Length",
                str(len(content) - start),
            )
        self.end_headers()
        body = content[start:] + (content if answer == "longer" else b"")
        # The announced length stays: that is how a client knows.
        half = answer in ("cut", "stall")
        self.wfile.write(body[: len(body) // 2] if half else body)
        if answer == "stall":
            self.wfile.flush()
            # Longer than the client's limit.
            time.sleep(1.0)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(
        f"http://127.0.0.1:{http.server_address[1]}",
        tar_of(FILES),
    )

    http.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(
        target=http.serve_forever,
        kwargs={"poll_interval": 0.01},
    )
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and FOLDER not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def get(
    server: Server,
    root: Path,
    kind: str = "tar",
    **options: Any,
) -> list[str]:
    return download(
        [server.archive(kind)],
        root,
        retries=QUICK,
        **options,
    )


# ---- fetching ----


@pytest.mark.parametrize(
    ("kind", "make"),
    [("tar", tar_of), ("zip", zip_of)],
)
def test_an_archive_is_fetched_unpacked_and_not_fetched_again(
    server: Server,
    tmp_path: Path,
    kind: str,
    make: Callable[[dict[str, bytes]], bytes],
) -> None:
    server.content = make(FILES)
    seen: list[tuple[str, int, int]] = []

    assert get(
        server,
        tmp_path,
        kind,
        progress=lambda *where: seen.append(where),
    ) == [f"pictures.{kind}"]
    assert contents(tmp_path) == FILES
    assert seen[-1] == (
        f"pictures.{kind}",
        len(server.content),
        len(server.content),
    )
    # Again: nothing is asked for.
    assert get(server, tmp_path, kind) == []
    assert len(server.ranges) == 1
    # The archive itself is removed: unpacked, it would take its space twice.
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("answers", "num_resumed"),
    [
        (["cut"], 1),
        (["cut", "cut", "cut", "cut", "cut"], 5),
        ([500, 503, "cut", 429, 502], 3),
        (["stall"], 1),
        (["cut", "plain"], 1),
        (["cut", "shifted"], 2),
        (["page", "page"], 0),
        (["cut", "page"], 2),
    ],
)
def test_what_breaks_off_is_taken_up_again(
    server: Server, tmp_path: Path, answers: list[Any], num_resumed: int
) -> None:
    server.answers = list(answers)
    get(server, tmp_path)
    assert contents(tmp_path) == FILES
    assert server.answers == []
    # From the start again only where the answer left no other way.
    assert sum(asked is not None for asked in server.ranges) == num_resumed


@pytest.mark.parametrize("status", [404, 403, 410])
def test_what_is_not_there_is_told_at_once(server: Server, tmp_path: Path, status: int) -> None:
    # One answer: a second request would get the file.
    server.answers = [status]
    with pytest.raises(
        DownloadError, match=f"pictures.tar: the server answers {status} .*; try a --mirror"
    ):
        get(server, tmp_path)
    assert len(server.ranges) == 1
    assert contents(tmp_path) == {}


def test_a_server_that_fails_on_and_on_is_given_up_and_later_resumed(
    server: Server, tmp_path: Path
) -> None:
    server.answers = ["cut", 500, 500, 500]
    half = len(server.content) // 2

    with pytest.raises(
        DownloadError, match=f"stopped at {half:,} of .* after 3 tries .the server answers 500"
    ):
        get(server, tmp_path)
    assert not is_there(server.archive(), tmp_path)

    get(server, tmp_path)
    assert server.ranges[-1] == f"bytes={half}-"
    assert contents(tmp_path) == FILES


def test_a_part_that_is_too_long_or_wrong_is_thrown_away(server: Server, tmp_path: Path) -> None:
    part = tmp_path / FOLDER / "pictures.tar.part"
    part.parent.mkdir()

    # Too long; as long, but wrong; shorter and wrong, so that it is continued first.
    for content in (bytes(len(server.content) + 1), bytes(len(server.content)), bytes(1000)):
        part.write_bytes(content)
        get(server, tmp_path)
        assert contents(tmp_path) == FILES
        shutil.rmtree(tmp_path / "pictures")


def test_another_file_of_the_same_size_is_refused(server: Server, tmp_path: Path) -> None:
    archive = server.archive()
    # The size agrees: only the digest tells.
    server.content = server.content[:-1] + b"x"
    with pytest.raises(DownloadError, match="fetched twice, and its digest is not sha256:"):
        download([archive], tmp_path, retries=QUICK)
    assert contents(tmp_path) == {}
    assert len(server.ranges) == 2


def test_a_server_that_never_stops_sending_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.answers = ["longer"]
    with pytest.raises(DownloadError, match="sends more than the"):
        get(server, tmp_path)


def test_no_server_at_all_is_one_sentence(tmp_path: Path) -> None:
    # Bound and closed again: nobody listens there.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
    archive = Archive(
        url,
        10,
        "sha256:" + "0" * 64,
        "x",
        "x",
    )

    with pytest.raises(DownloadError, match=r"stopped at 0 of 10 bytes after 3 tries \(.*refused"):
        download([archive], tmp_path, retries=QUICK)


def test_a_mirror_stands_for_the_host(server: Server, tmp_path: Path) -> None:
    archive = server.archive()
    moved = Archive(
        # `.invalid` never resolves: a request past the mirror would fail.
        "http://official.invalid/zips/pictures.tar",
        archive.bytes,
        archive.digest,
        archive.top,
        archive.proof,
    )

    assert download(
        [moved],
        tmp_path,
        mirror=f"{server.url}/",
        retries=QUICK,
    ) == ["pictures.tar"]


def test_too_little_space_is_told_before_the_first_byte(server: Server, tmp_path: Path) -> None:
    archive = server.archive()
    vast = Archive(
        archive.url,
        # More than any disk that runs the tests.
        10**15,
        archive.digest,
        archive.top,
        archive.proof,
    )

    with pytest.raises(DownloadError, match=r"unpacked need 2,000,000\.1 GB, .* GB are free"):
        download([vast], tmp_path, retries=QUICK)
    assert server.ranges == []


def test_two_downloads_in_one_folder_are_refused(server: Server, tmp_path: Path) -> None:
    def inner(*where: object) -> None:
        with pytest.raises(DownloadError, match="another download is at work"):
            get(server, tmp_path)

    get(server, tmp_path, progress=inner)


def test_a_place_that_cannot_be_written_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(server, tmp_path / "file" / "root")


def test_a_users_own_copy_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "1.jpg").write_text("mine")
    assert get(server, tmp_path) == []
    assert server.ranges == []


def test_killed_while_fetching_and_finished_by_another_process(
    server: Server, tmp_path: Path
) -> None:
    archive = server.archive()
    server.answers = ["stall"]
    code = (
        "from pathlib import Path\n"
        "from datasets.download.archives import Archive\n"
        "from datasets.download.download import download\n"
        f"download([{archive!r}], Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
    )
    part = tmp_path / FOLDER / "pictures.tar.part"
    while not (part.exists() and part.stat().st_size > 0) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    got = part.stat().st_size

    assert 0 < got < archive.bytes

    get(server, tmp_path)

    assert server.ranges[-1] == f"bytes={got}-"
    assert contents(tmp_path) == FILES


def test_killed_while_unpacking_and_finished(server: Server, tmp_path: Path) -> None:
    child = os.fork()

    if child == 0:
        Path.rename = lambda *_: os.kill(  # type: ignore[assignment]
            os.getpid(),
            signal.SIGKILL,
        )
        Path.replace = Path.rename  # type: ignore[assignment]
        folder = tmp_path / FOLDER
        folder.mkdir()
        (folder / "pictures.tar").write_bytes(server.content)
        unpack(
            folder / "pictures.tar",
            tmp_path,
            top="pictures",
            max_bytes=10**6,
        )
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert contents(tmp_path) == {}
    assert not is_there(server.archive(), tmp_path)

    get(server, tmp_path)

    assert contents(tmp_path) == FILES
    assert server.ranges == []


# ---- hostile archives ----


def tar_with(info: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(
            info,
            io.BytesIO(bytes(info.size)),
        )
    return buffer.getvalue()


def special(kind: bytes, name: str = "pictures/x", target: str = "/etc/passwd") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tar_with(info)


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("pictures/x")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def lying_zip() -> bytes:
    """Its directory says 10 bytes, its data are a million."""
    content = zip_of({"pictures/x": bytes(10**6)})
    return content.replace(
        (10**6).to_bytes(4, "little"),
        (10).to_bytes(4, "little"),
    )


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "parent folder": (
        "tar",
        lambda: tar_of({"pictures/../../x": b""}),
        "leads outside",
    ),
    "parent folder in a zip": (
        "zip",
        lambda: zip_of({"pictures/../../x": b""}),
        "leads outside",
    ),
    "absolute name": (
        "tar",
        lambda: tar_of({"/tmp/x": b""}),
        "leads outside",
    ),
    "backslashes": (
        "tar",
        lambda: tar_of({"pictures\\..\\x": b""}),
        "leads outside",
    ),
    "another folder": ("zip", lambda: zip_of({"other/x": b""}), "does not lie in pictures/"),
    "no folder": ("tar", lambda: tar_of({"pictures": b""}), "does not lie in pictures/"),
    "symbolic link": ("tar", lambda: special(tarfile.SYMTYPE), "link or a device"),
    "hard link": ("tar", lambda: special(tarfile.LNKTYPE), "link or a device"),
    "link in a zip": ("zip", zip_link, "link or a device"),
    "device": ("tar", lambda: special(tarfile.CHRTYPE), "link or a device"),
    "pipe": ("tar", lambda: special(tarfile.FIFOTYPE), "link or a device"),
    "bomb": (
        "zip",
        lambda: zip_of({f"pictures/{n}": bytes(10**6) for n in range(3)}),
        "larger than the",
    ),
    "bomb with a lying header": ("zip", lying_zip, "is damaged|larger than its header"),
    "damaged zip": (
        "zip",
        lambda: zip_of(FILES)[:-100],
        "is damaged",
    ),
    "not a tar": ("tar", lambda: b"<html>" + bytes(5000), "is damaged"),
    "empty": ("tar", lambda: tar_of({}), "holds no pictures/"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    ending, make, reason = HOSTILE[kind]
    root = tmp_path / "root"
    (root / FOLDER).mkdir(parents=True)
    path = root / FOLDER / f"pictures.{ending}"
    path.write_bytes(make())

    with pytest.raises(DownloadError, match=reason):
        unpack(
            path,
            root,
            top="pictures",
            max_bytes=2 * 10**6,
        )
    assert contents(root) == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["root"]
    assert not [entry for entry in root.rglob("*") if entry.is_symlink()]


def test_a_served_hostile_archive_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = special(tarfile.SYMTYPE)
    with pytest.raises(DownloadError, match=r"cannot be unpacked safely: .* link or a device"):
        get(server, tmp_path)
    assert contents(tmp_path) == {}


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.download.unpack.MAX_FILES", 2)
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(FILES))

    with pytest.raises(DownloadError, match="more than 2 files"):
        unpack(
            path,
            tmp_path,
            top="pictures",
            max_bytes=10**6,
        )


def test_archives_of_the_same_folder_are_merged(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for files in ({"pictures/a/1": b"old", "pictures/b/2": b""}, {"pictures/a/1": b"new"}):
        path = tmp_path / "pictures.tar"
        path.write_bytes(tar_of(files))
        unpack(
            path,
            tmp_path / "root",
            top="pictures",
            max_bytes=10**6,
        )

    assert contents(tmp_path / "root") == {"pictures/a/1": b"new", "pictures/b/2": b""}


# ---- which archives ----


@pytest.mark.parametrize(
    ("corpus", "split", "expected"),
    [
        ("coco", "train2014", [COCO["train2014"], COCO_ANNOTATIONS["2014"]]),
        ("coco", "val2017", [COCO["val2017"], COCO_ANNOTATIONS["2017"]]),
        ("coco", "test2014", [COCO["test2014"]]),
        ("coco", "unlabeled", [COCO["unlabeled2017"]]),
        ("voc", "2012-seg-val", [VOC["2012"]]),
        ("voc", "2007-all", [VOC["2007"], VOC["2007-test"]]),
        ("voc", "2007-seg-test", [VOC["2007-test"]]),
    ],
)
def test_each_split_knows_its_archives(corpus: str, split: str, expected: list[Archive]) -> None:
    assert list(archives_for(corpus, split)) == expected


@pytest.mark.parametrize(
    ("corpus", "split", "reason"),
    [
        ("coco", "train", "with its year"),
        ("coco", "unlabeled2014", "with its year"),
        ("voc", "train", "with its year"),
        ("voc", "2012-test", "login"),
        ("imagenet", "train", "only coco and voc"),
    ],
)
def test_what_cannot_be_downloaded_is_told(corpus: str, split: str, reason: str) -> None:
    with pytest.raises(DownloadError, match=reason):
        archives_for(corpus, split)


def test_the_catalogue_is_well_formed() -> None:
    for archive in (*COCO.values(), *COCO_ANNOTATIONS.values(), *VOC.values()):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", archive.digest)
        assert archive.name.endswith((".zip", ".tar"))
        assert archive.proof.startswith(archive.top)
