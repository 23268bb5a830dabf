"""colorgan/config/progress.py: plain lines without a terminal, a bar with one."""

import io

import pytest
from rich.console import Console

from colorgan.config import progress


def console(*, terminal: bool) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=120,
    )


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


@pytest.mark.parametrize(
    ("total", "words"), [(2000, "1,000 of 2,000 images"), (None, "1,000 images")]
)
def test_plain_lines_come_where_one_is_due(
    monkeypatch: pytest.MonkeyPatch, total: int | None, words: str
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    plain = console(terminal=False)
    with progress.images_shown(total, plain) as show:
        show(1000, 3)

    assert text(plain).startswith(words)
    assert text(plain).endswith("3 rejected\n")
    with progress.bytes_shown(plain) as show_bytes:
        show_bytes("train.zip", 1_500_000_000, 13_000_000_000)

    assert text(plain).splitlines()[-1] == "train.zip: 1.50 of 13.00 GB"


def test_nothing_is_said_of_short_work() -> None:
    plain = console(terminal=False)
    with progress.images_shown(10, plain) as show:
        for done in range(10):
            show(done, 0)
    assert text(plain) == ""


def test_a_terminal_gets_a_bar() -> None:
    terminal = console(terminal=True)
    with progress.images_shown(10, terminal) as show:
        show(4, 1)
    with progress.bytes_shown(terminal) as show_bytes:
        show_bytes("train.zip", 1, 2)

    assert "4/10" in text(terminal)
    assert "1 rejected" in text(terminal)
    assert "train.zip" in text(terminal)
