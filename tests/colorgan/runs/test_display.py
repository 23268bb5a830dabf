"""The display: plain lines at a sensible pace, a live view on a terminal, nothing left broken."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from colorgan.runs import display as module
from colorgan.runs.display import Display, clock_text

LOSSES = {"loss/generator": 5.312, "loss/discriminator": 0.6123, "gradient_norm/generator": 3.0}
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the display's time in seconds; set its first item."""
    clock = [1000.0]
    monkeypatch.setattr(
        module.time,
        "monotonic",
        lambda: clock[0],
    )
    return clock


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=40, force_terminal=False), out


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        height=30,
        force_terminal=True,
        color_system=None,
        _environ={"TERM": "xterm"},
    )

    return console, out


def test_a_plain_line(now: list[float]) -> None:
    console, out = plain()
    with Display(20_000, 0, "pretrain", console) as display:
        display.update(12_800, LOSSES, 151.2, 0.004)
    assert out.getvalue() == (
        "images 12,800/20,000 64% | 151 img/s | left 0:48 | loss G 5.31 D 0.612\n"
    )


def test_a_plain_line_tells_of_waiting_where_it_costs_something(now: list[float]) -> None:
    console, out = plain()
    with Display(100, 0, "t", console) as display:
        display.update(100, {"loss/model": 0.5}, 10.0, 0.25)
    assert out.getvalue() == "images 100/100 100% | 10 img/s | left 0:00 | loss 0.5 | wait 25%\n"


def test_lines_fit_80_columns_in_a_run_of_millions(now: list[float]) -> None:
    console, out = plain()
    with Display(2_563_200, 0, "t", console) as display:
        display.update(2_563_100, {**LOSSES, "loss/generator": 10.12345}, 151.2, 0.0)
    assert all(len(line) <= 80 for line in out.getvalue().splitlines())


def test_steps_between_log_points_are_shown_by_the_clock(now: list[float]) -> None:
    console, out = plain()
    with Display(1_000, 200, "t", console) as display:
        display.seen(200)
        now[0] += 4.0
        display.seen(240)
        now[0] += 4.0
        display.seen(280)
    # None at the start, where no rate is known; then at the pace of other lines.
    assert out.getvalue().splitlines() == ["images 240/1,000 24% | 10 img/s | left 1:16"]


def test_the_live_view_moves_without_log_points() -> None:
    console, out = terminal()
    with Display(1_000, 0, "pretrain", console) as display:
        assert "the first step is under way" in out.getvalue()
        display.seen(250)
    assert "250/1,000 25%" in out.getvalue()


def test_plain_lines_come_at_a_pace_and_the_last_one_always(now: list[float]) -> None:
    console, out = plain()
    with Display(1_000_000, 0, "t", console) as display:
        for second in range(100_000):
            now[0] = 1000.0 + second
            display.update(second, {}, 1.0, 0.0)
        first_minute = [
            line
            for line in out.getvalue().splitlines()
            if int(line.split()[1].split("/")[0].replace(",", "")) < 60
        ]
        assert len(first_minute) == 12
        assert 1_500 < len(out.getvalue().splitlines()) < 1_800  # about one a minute in a day
        display.update(1_000_000, {}, 1.0, 0.0)

    assert (
        out.getvalue().splitlines()[-1] == "images 1,000,000/1,000,000 100% | 1 img/s | left 0:00"
    )


def test_messages_are_lines_as_they_are(now: list[float]) -> None:
    console, out = plain()
    with Display(100, 0, "t", console) as display:
        display.message(
            "[bold]saved[/bold] :smile: checkpoints/0000000064, a line longer than the console is "
            "wide"
        )

    assert out.getvalue().splitlines() == [
        "[bold]saved[/bold] :smile: checkpoints/0000000064, a line longer than the console is wide",
    ]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 0.0, 1e300],
)
def test_any_number_can_be_shown(value: float) -> None:
    for console, out in (plain(), terminal()):
        with Display(0, 0, "t", console) as display:
            display.update(0, {"loss/x": value}, value, value)
        assert out.getvalue()


def test_the_live_view_shows_it_all() -> None:
    console, out = terminal()
    with Display(20_000, 10_000, "pretrain", console) as display:
        display.update(12_800, LOSSES, 151.2, 0.004, {"learning rate": "generator 0.0002"})
        display.message("saved")
    text = out.getvalue()
    parts = ["pretrain", "━", "12,800/20,000 64%", "151 img/s", "left 0:48"]
    parts += ["generator 5.31   discriminator 0.612", "waiting for data", "0.4%"]
    parts += ["saved", "gradient norm", "learning rate", "generator 0.0002"]
    for part in parts:
        assert part in text

    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.index(HIDE) < text.index(SHOW)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_the_terminal_is_given_back_on_errors(error: type[BaseException]) -> None:
    console, out = terminal(width=20)
    with pytest.raises(error), Display(100, 0, "t", console) as display:
        display.update(1, LOSSES, 1.0, 0.0)
        raise error
    assert out.getvalue().rfind(SHOW) > out.getvalue().rfind(HIDE) >= 0
    assert out.getvalue().endswith("\n" + SHOW)
    console.print("free again")  # no view hangs on to the console


def test_the_live_view_is_not_redrawn_more_often_than_needed(now: list[float]) -> None:
    console, out = terminal()
    with Display(1_000, 0, "t", console) as display:
        before = len(out.getvalue())
        for images in range(500):
            now[0] += 0.001
            display.update(images, {}, 1.0, 0.0)
        assert out.getvalue()[before:].count("━") < 8 * 40


def test_durations() -> None:
    seconds = (
        0,
        47.6,
        3_600 - 0.6,
        7_389,
        3 * 86_400 + 14_400,
    )

    assert [clock_text(second) for second in seconds] == [
        "0:00",
        "0:48",
        "59:59",
        "2:03:09",
        "3 d 04:00:00",
    ]
