"""Show a run's progress: a live view on a terminal, plain lines elsewhere (pipes, SLURM's log).

    with Display(total_images, start_images, "pretrain") as display:
        display.seen(images_seen)                                       # after each step
        display.update(images_seen, values, images_per_s, wait_share)   # at each log point
        display.message("saved checkpoints/0000012800")

Rank 0 only. The view is drawn once a second by a clock, so that a long step does not look dead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

REDRAWS_PER_S = 1.0
# Plain lines: often at first, when somebody watches; one per minute in a run of days.
PLAIN_FIRST_EVERY_S = 5.0
PLAIN_LATER_EVERY_S = 60.0
# Waiting for data is told in a plain line from here on: below, it costs nothing worth a word.
WORTH_TELLING = 0.05


class Display:
    """Shows a run's progress. Nothing is shown before it is entered.

    Args:
        total_images: The run's length in images.
        start_images: Images already seen, of a resumed run.
        title: Shown before the bar.
        console: Where to show, by default standard output; a terminal gets the live view.
    """

    def __init__(
        self, total_images: int, start_images: int, title: str, console: Console | None = None
    ) -> None:
        self._console = console or Console()
        self._total_images = total_images
        self._start_images = self._images_seen = start_images
        # As measured at the last log point, without validation and saving.
        self._images_per_s = 0.0
        self._shown_at = float("-inf")
        self._started_at = time.monotonic()

        self._view: _View | None = None
        # A dumb terminal (an editor's shell) cannot move its cursor up.
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._view = _View(self._console)
            self._task = self._view.add_task(
                title,
                total=max(1, total_images),
                completed=start_images,
                status=f"{self._progress(start_images)}   the first step is under way",
            )

    def __enter__(self) -> Display:
        self._started_at = time.monotonic()
        if self._view is not None:
            self._view.start()
            self._view.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._view is not None:
            # Forgotten first: messages from now on are plain lines below the last state.
            view, self._view = self._view, None
            view.stop()

    def seen(self, images_seen: int) -> None:
        """Show how far the run is between log points, by this display's own clock."""
        # Called at every point of a step: there is nothing new before the next one.
        if images_seen == self._images_seen:
            return
        self._images_seen = images_seen

        now = time.monotonic()
        elapsed = now - self._started_at
        if elapsed <= 0:
            return

        images_per_s = self._images_per_s or (images_seen - self._start_images) / elapsed
        if self._view is not None:
            status = "   ".join(self._pace(images_seen, images_per_s))
            self._view.update(self._task, completed=images_seen, status=status)
        elif now - self._shown_at >= self._every_s(now) and images_seen < self._total_images:
            self._shown_at = now
            self._line(self._pace(images_seen, images_per_s))

    def update(
        self,
        images_seen: int,
        values: Mapping[str, float],
        images_per_s: float,
        wait_share: float,
        further: Mapping[str, str] | None = None,
    ) -> None:
        """Show the state at a log point, unless something was shown a moment ago.

        Args:
            images_seen: Of the whole run.
            values: Scalars by name; those of one group (`loss/generator`, ...) share a line.
            images_per_s: Over all ranks.
            wait_share: Share of the time spent waiting for the loader, 0 to 1.
            further: Words by name for the live view, such as the learning rate.
        """
        self._images_per_s = images_per_s
        pace = self._pace(images_seen, images_per_s)
        if self._view is not None:
            self._view.values = dict(values)
            self._view.further = {**(further or {}), "waiting for data": f"{wait_share:.1%}"}
            self._view.update(self._task, completed=images_seen, status="   ".join(pace))

        now = time.monotonic()
        ended = images_seen >= self._total_images
        if self._view is not None:
            # The last state is what stays on the screen; the clock draws all others.
            if ended:
                self._view.refresh()
            return

        if not ended and now - self._shown_at < self._every_s(now):
            return
        self._shown_at = now
        waiting = f"wait {wait_share:.0%}" if wait_share >= WORTH_TELLING else ""
        self._line([*pace, _short_losses(values), waiting])

    def message(self, text: str) -> None:
        """Print a line, above the view if there is one."""
        # Nothing is interpreted: a path may hold [brackets] that rich would take for markup.
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _line(self, parts: Iterable[str]) -> None:
        self.message("images " + " | ".join(part for part in parts if part))

    def _pace(self, images_seen: int, images_per_s: float) -> list[str]:
        left = _time_left(self._total_images - images_seen, images_per_s)
        return [self._progress(images_seen), f"{_rate(images_per_s)} img/s", f"left {left}"]

    def _progress(self, images_seen: int) -> str:
        share = min(1.0, images_seen / max(1, self._total_images))
        return f"{images_seen:,}/{self._total_images:,} {share:.0%}"

    def _every_s(self, now: float) -> float:
        # A twentieth of the time so far, between the two.
        return min(PLAIN_LATER_EVERY_S, max(PLAIN_FIRST_EVERY_S, 0.05 * (now - self._started_at)))


class _View(Progress):
    """A bar, a line of text below it, and the last values by group."""

    def __init__(self, console: Console) -> None:
        self.values: dict[str, float] = {}
        self.further: dict[str, str] = {}
        columns = (TextColumn("[bold]{task.description}"), BarColumn(40), TimeElapsedColumn())
        # Once a second: more often its thread would compete with training for Python's lock.
        super().__init__(*columns, console=console, refresh_per_second=REDRAWS_PER_S)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (_status_table(task, self.values, self.further) for task in self.tasks)


def _status_table(task: Task, values: Mapping[str, float], further: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    # Folded: a cut value would be a wrong value.
    table.add_column(overflow="fold")
    table.add_row("images", Text(str(task.fields["status"])))
    for group, members in _groups(values).items():
        table.add_row(group.replace("_", " "), Text(_named(members, "   ")))
    for name, words in further.items():
        table.add_row(name, Text(words))
    return table


def clock_text(seconds: float) -> str:
    """Return a duration as `0:48`, `2:03:09` or `3 d 04:00:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _time_left(images_left: int, images_per_s: float) -> str:
    if not 0 < images_per_s < float("inf"):
        return "?"
    return clock_text(max(0, images_left) / images_per_s)


def _short_losses(values: Mapping[str, float]) -> str:
    """Return the losses in a few letters, G and D for a GAN's two: a line has 80 columns."""
    losses = {name: value for name, value in values.items() if name.startswith("loss/")}
    if len(losses) < 2:
        return "".join(f"loss {_number(value)}" for value in losses.values())
    initials = {name.partition("/")[2][:1].upper(): value for name, value in losses.items()}
    return f"loss {_named(initials)}"


def _groups(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, slash, rest = name.partition("/")
        groups.setdefault(group if slash else "values", {})[rest if slash else name] = value
    return groups


def _named(values: Mapping[str, float], between: str = " ") -> str:
    return between.join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}"


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"
