"""What a person sees of a run: a live view on a terminal, plain lines elsewhere (a pipe, SLURM's log).

    with Display(total_images, start_images, "pretrain") as display:
        display.update(images_seen, values, images_per_s, wait_share)   # at each log point
        display.scores(images_seen, {"psnr": 20.9})                     # after a validation
        display.message("saved checkpoints/0000012800")

It only shows numbers that it is given. The view is redrawn when it is told something: no thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW_EVERY_S = 0.1
# Plain lines: often at first, when one looks; a line a minute on a run of days.
PLAIN_FIRST_EVERY_S = 5.0
PLAIN_LATER_EVERY_S = 60.0


class Display:
    """Shows progress; rank 0 makes the real one, other ranks one that is not `enabled`, and silent."""

    def __init__(
        self,
        total_images: int,
        start_images: int,
        title: str,
        console: Console | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        """Shows nothing before it is entered.

        Args:
            total_images: The run's length in images.
            start_images: Images already seen, of a resumed run.
            title: Stands before the bar.
            console: Where to show, by default standard output; `is_terminal` decides between view and lines.
            enabled: False on ranks other than 0.
        """
        self._console = console or Console()
        self._enabled = enabled
        self._total_images = total_images
        self._title = title
        self._images_seen = start_images
        self._images_per_s = 0.0
        self._wait_share = 0.0
        self._values: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._scores_images = 0
        self._live: Live | None = None
        self._shown_at = float("-inf")
        self._started_at = time.monotonic()

    def __enter__(self) -> Display:
        if self._enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self._view(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        self._started_at = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            try:
                live.update(self._view(), refresh=True)
            finally:
                live.stop()

    def update(
        self, images_seen: int, values: Mapping[str, float], images_per_s: float, wait_share: float
    ) -> None:
        """Takes the state at a log point.

        Args:
            images_seen: Of the whole run.
            values: Scalars by name; those of one group (`loss/generator`, `loss/discriminator`) share a line.
            images_per_s: Over all ranks.
            wait_share: Share of the time spent waiting for the loader, 0 to 1.
        """
        self._images_seen, self._values = images_seen, dict(values)
        self._images_per_s, self._wait_share = images_per_s, wait_share
        now = time.monotonic()
        ended = images_seen >= self._total_images
        if not self._enabled or not (ended or now - self._shown_at >= self._every_s(now)):
            return
        self._shown_at = now
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
        else:
            self._print(self._line())

    def scores(self, images_seen: int, scores: Mapping[str, float]) -> None:
        """Takes the scores of a validation: a line of the view, or a plain line."""
        self._scores, self._scores_images = dict(scores), images_seen
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
        elif self._enabled:
            self._print(f"validation at {images_seen:,} images: {_named(scores)}")

    def message(self, text: str) -> None:
        """Prints a line, above the view where there is one."""
        if self._enabled:
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _every_s(self, now: float) -> float:
        if self._live is not None:
            return REDRAW_EVERY_S
        return min(PLAIN_LATER_EVERY_S, max(PLAIN_FIRST_EVERY_S, 0.05 * (now - self._started_at)))

    def _left(self) -> str:
        if not 0 < self._images_per_s < float("inf"):
            return "?"
        return clock_text(max(0, self._total_images - self._images_seen) / self._images_per_s)

    def _progress(self) -> str:
        share = self._images_seen / max(1, self._total_images)
        return f"{self._images_seen:,}/{self._total_images:,} {min(share, 1.0):.0%}"

    def _line(self) -> str:
        losses = {
            name: value for name, value in self._values.items() if name.startswith("loss")
        } or self._values
        parts = [f"images {self._progress()}", f"{_rate(self._images_per_s)} img/s", f"left {self._left()}",
                 _named(losses), f"wait {self._wait_share:.1%}"]  # fmt: skip
        return " | ".join(part for part in parts if part)

    def _view(self) -> Table:
        view = Table.grid(padding=(0, 2))
        view.add_column(style="bold", no_wrap=True)
        view.add_column(overflow="fold")
        bar = ProgressBar(total=max(1, self._total_images), completed=self._images_seen, width=40)
        view.add_row(self._title, bar)
        view.add_row(
            "images",
            Text(f"{self._progress()}   {_rate(self._images_per_s)} img/s   left {self._left()}"
                 f"   waiting for data {self._wait_share:.1%}"),
        )  # fmt: skip
        for group, values in _groups(self._values).items():
            view.add_row(group.replace("_", " "), Text(_named(values, "   ")))
        if self._scores:
            view.add_row(
                "validation",
                Text(f"{_named(self._scores, '   ')}   at {self._scores_images:,} images"),
            )
        return view


def clock_text(seconds: float) -> str:
    """A duration as `0:48`, `2:03:09` or `3 d 04:00:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _groups(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, slash, rest = name.partition("/")
        groups.setdefault(group if slash else "values", {})[rest if slash else name] = value
    return groups


def _named(values: Mapping[str, float], between: str = " ") -> str:
    return between.join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.3g}"


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"
