"""Files replaced whole, folders owned by one process."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorgan.errors import UsageError
from colorgan.files import owned_folder, replacing, replacing_folder


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as partial:
            partial.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_use_names_its_owner(tmp_path: Path) -> None:
    owner = f"process {os.getpid()} on host {socket.gethostname()}"
    with owned_folder(tmp_path), pytest.raises(UsageError, match=owner), owned_folder(tmp_path):
        pass
    with owned_folder(tmp_path):
        pass


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from colorgan.files import owned_folder\n"
        "with owned_folder(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=60,
    )

    assert ended.returncode == -9
    with owned_folder(tmp_path):
        pass


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_lock_file_is_only_a_name_less(tmp_path: Path, content: bytes) -> None:
    with owned_folder(tmp_path):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UsageError, match="in use by another process"), owned_folder(tmp_path):
            pass


def test_a_folder_that_is_replaced_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    out = tmp_path / "generator"
    (out / "evaluation").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "model.onnx"):
        (out / name).write_text("old")
    for name in ("README.md", "NOTES.txt", "evaluation/scores.json"):
        (out / name).write_text("kept")
    (out / "link").symlink_to("NOTES.txt")

    with replacing_folder(out) as folder:
        for name in ("config.json", "model.safetensors", "README.md"):
            (folder / name).write_text("new")
    assert {each.name for each in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "NOTES.txt",
        "evaluation",
        "link",
    }
    assert (out / "config.json").read_text() == "new"
    assert (out / "README.md").read_text() == "kept"
    assert (out / "evaluation" / "scores.json").read_text() == "kept"
    assert (out / "link").readlink() == Path("NOTES.txt")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("can_link", [True, False])
def test_what_stays_of_a_folder_is_whole_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not can_link:
        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "report"
    (out / "mine").mkdir(parents=True)
    for name in ("report.md", "old.png", "mine/a.txt"):
        (out / name).write_text(name)
    with replacing_folder(out) as folder:
        (folder / "report.md").write_text("new")
    assert {each.name for each in out.iterdir()} == {"report.md", "mine"}
    assert (out / "mine" / "a.txt").read_text() == "mine/a.txt"


def test_two_writers_of_one_folder_leave_a_whole_one(tmp_path: Path) -> None:
    """Each in a process of its own, as a fine-tuning and a consolidation of it may be."""
    code = """
import sys
from pathlib import Path
from colorgan.files import replacing_folder
for number in range(60):
    with replacing_folder(Path(sys.argv[1]) / "out") as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(f"{sys.argv[2]} {number}")
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*words, name], stderr=subprocess.PIPE) for name in ("a", "b")]
    errors = [writer.communicate()[1].decode() for writer in writers]

    assert errors == ["", ""]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    first, second = (
        (tmp_path / "out" / name).read_text() for name in ("config.json", "model.safetensors")
    )
    assert first == second


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / f".out.{socket.gethostname()}-999999999.partial"
    left.mkdir()
    foreign = tmp_path / ".out.another-host-1.partial"
    foreign.mkdir()
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name, "out"]
