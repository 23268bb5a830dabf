"""The training loop: `fit` takes a task through its phases, one step a global batch, counted in images seen.

    loader -> fit(task, strategy) -> log, validations, checkpoints

Pretraining has two phases (discriminator, generator), fine-tuning one; the loop knows neither. All functions are
called on all ranks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Protocol

from torch import Tensor

from colorgan.data import Batch, Loader
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import NotFiniteError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Task(Protocol):
    """What is learnt: phases and their losses."""

    phases: Sequence[Phase]

    def loss(
        self, phase: Phase, batch: Batch, networks: Mapping[str, Network]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar, a mean over it) and named scalars to log."""
        ...


@dataclass(frozen=True)
class Intervals:
    """When things happen, all in images seen; 0 = at the end only."""

    total_images: int
    global_batch_size: int
    log_every_images: int
    validate_every_images: int = 0
    save_every_images: int = 0


@dataclass
class StepReport:
    """What the loop tells at each log point."""

    images_seen: int
    values: dict[str, float]  # means since the last report, over all ranks
    images_per_s: float
    wait_share: float  # of the time, spent waiting for the loader on this rank


@dataclass
class Meter:
    """Sums named scalars on the device; one transfer a report."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value to each name's sum, without waiting for the device."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, ranks: Ranks) -> dict[str, float]:
        """Return the means over all ranks and start again. Called on all ranks."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        gathered = ranks.gather(means)
        return {name: sum(each[name] for each in gathered) / len(gathered) for name in means}


class StopSignals:
    """While open, SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 ask the run to save and stop instead of killing it.

    `received` is this rank's signal; `agreed` is what all ranks stop for, set at the end of the same step on all of
    them. A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.agreed: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class Note(Protocol):
    """Takes a point that the loop has reached; see `colorgan.runs.watchdog.Watchdog.note`."""

    def __call__(
        self,
        name: str,
        images_seen: int,
        batches: Iterable[Batch] | None = None,
        *,
        collective: bool = False,
    ) -> None: ...


def _note_nothing(
    name: str, images_seen: int, batches: Iterable[Batch] | None = None, *, collective: bool = False
) -> None:
    """Without a watchdog."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls at its points; each is called on all ranks.

    `note(point, images_seen, batches, collective=...)` is told every point reached (colorgan/runs/watchdog.py).
    """

    report: Callable[[StepReport], None]
    validate: Callable[[int], None]
    save: Callable[[int], None]
    note: Note = _note_nothing


def fit(
    task: Task,
    strategy: Strategy,
    loader: Loader,
    intervals: Intervals,
    hooks: Hooks,
    stop: StopSignals,
    *,
    images_seen: int = 0,
) -> int:
    """Train from `images_seen` to `cadence.total_images` or to a stop signal on any rank; return images seen.

    The end of a run is validated and saved in any case; a stop is saved.

    Raises:
        NotFiniteError: a loss is not a finite number (seen at the next log point, before anything is saved).
    """
    ranks, note = strategy.ranks, hooks.note
    batches = loader.train_batches(images_seen)
    meter, clock = Meter(), _Clock(loader)
    while images_seen < intervals.total_images:
        note("wait for the loader", images_seen)
        micro_batches = next(batches)
        note("batch read", images_seen, micro_batches)
        for phase in task.phases:
            if (images_seen // intervals.global_batch_size) % phase.every == 0:
                meter.add(_turn(task, strategy, phase, micro_batches, images_seen, note))
        note("end of the step: shared statistics", images_seen, collective=True)
        strategy.end_step(intervals.global_batch_size)
        before, images_seen = images_seen, images_seen + intervals.global_batch_size
        clock.count(intervals.global_batch_size)
        ended = images_seen >= intervals.total_images
        note("end of the step: agree on stopping", images_seen, collective=True)
        stopped = ranks.any(stop.received is not None)
        if stopped:
            stop.agreed = next(name for name in ranks.gather(stop.received) if name)

        def due(
            every: int, before: int = before, now: int = images_seen, ended: bool = ended
        ) -> bool:
            return ended or bool(every and before // every < now // every)

        if due(intervals.log_every_images) or stopped or due(intervals.save_every_images):
            note("gather what is logged", images_seen, collective=True)
            values = meter.flush(ranks)
            _check_finite(values, images_seen)
            hooks.report(clock.report(images_seen, values))
        if due(intervals.validate_every_images) and not stopped:
            note("validate", images_seen)
            hooks.validate(images_seen)
        if due(intervals.save_every_images) or stopped:
            note("save", images_seen, collective=True)
            hooks.save(images_seen)
            note("saved", images_seen)
        clock.start()
        if stopped:
            break
    return images_seen


def _turn(
    task: Task,
    strategy: Strategy,
    phase: Phase,
    micro_batches: Sequence[Batch],
    images_seen: int,
    note: Note,
) -> dict[str, Tensor]:
    """One phase of one step: accumulate over the micro-batches, update; return the means of what was logged."""
    meter = Meter()
    networks = strategy.networks(phase)
    with strategy.turn(phase):
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1  # its backward shares the gradients
            note(
                f"{phase.name}: micro-batch {index + 1} of {len(micro_batches)}",
                images_seen,
                collective=last,
            )
            with strategy.micro_step(phase, last=last):
                with strategy.autocast():
                    loss, values = task.loss(phase, batch, networks)
                strategy.backward(phase, loss / len(micro_batches))
            meter.add({f"loss/{phase.name}": loss, **values})
        note(f"{phase.name}: update", images_seen, collective=True)
        norm = strategy.step(phase, images_seen)
    means = {name: total / meter.counts[name] for name, total in meter.sums.items()}
    return {**means, f"gradient_norm/{phase.name}": norm}


def _check_finite(values: Mapping[str, float], images_seen: int) -> None:
    for name, value in values.items():
        if value != value or value in (float("inf"), float("-inf")):
            raise NotFiniteError(
                f"{name} is {value} at {images_seen} images: lower optimizer.learning_rate or set "
                "optimizer.gradient_clip_norm; the run goes on from its last checkpoint"
            )


class _Clock:
    """Images a second and the loader's share of the time, without what validation and saving took."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._elapsed = 0.0
        self._images = 0
        self._waited = loader.wait_s
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def count(self, num_images: int) -> None:
        now = time.perf_counter()
        self._elapsed += now - self._since
        self._since = now
        self._images += num_images

    def report(self, images_seen: int, values: dict[str, float]) -> StepReport:
        elapsed = max(self._elapsed, 1e-9)
        waited = self._loader.wait_s - self._waited
        report = StepReport(images_seen, values, self._images / elapsed, min(1.0, waited / elapsed))
        self._elapsed, self._images, self._waited = 0.0, 0, self._loader.wait_s
        return report
