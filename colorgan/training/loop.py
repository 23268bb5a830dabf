"""The training loop: `fit` trains a task's phases, one global batch per step.

    loader -> fit(task, strategy) -> log, validations, checkpoints

Pretraining has two phases (discriminator, generator), fine-tuning one; the loop knows neither. All
functions are called on all ranks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from colorgan.data import Batch, Loader
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import LaggedAny, Ranks
from colorgan.errors import NotFiniteError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class Task(Protocol):
    """What is learnt: phases and their losses."""

    phases: Sequence[Phase]

    def share(self, batch: Batch, networks: Mapping[str, Network]) -> object:
        """Run once what several turns of a step need; `loss` is given what it returns.

        Asked before the first turn, where a step has several phases and one micro-batch, with the
        networks of the last phase: the graph is that phase's, the others take values from it.
        None: the turns share nothing.
        """
        ...

    def loss(
        self,
        phase: Phase,
        batch: Batch,
        networks: Mapping[str, Network],
        shared: object = None,
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
    """The loop's report at a log point.

    Attributes:
        images_seen: By the run.
        values: Means since the last report, over all ranks.
        images_per_s: Over all ranks.
        wait_share: Share of the time spent waiting for the loader on this rank.
        learning_rates: By phase, of the last step.
    """

    images_seen: int
    values: dict[str, float]
    images_per_s: float
    wait_share: float
    learning_rates: dict[str, float] = field(default_factory=dict)


@dataclass
class Meter:
    """Sums named scalars on the device; one transfer per report."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value to each name's sum, without waiting for the device."""
        for name, value in values.items():
            # Detached, or the sums would keep every step's graph alive; float32, as bf16 stops
            # counting at 256.
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Return the means on the device."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def flush(self, ranks: Ranks) -> dict[str, float]:
        """Return the means over all ranks and start again. Called on all ranks.

        Waits for the device.
        """
        totals: list[float] = []
        if self.sums:
            # One transfer: each `.item()` would wait for the device by itself.
            totals = torch.stack([total.reshape(()) for total in self.sums.values()]).tolist()
        means = {}
        for name, total in zip(self.sums, totals, strict=True):
            means[name] = total / self.counts[name]
        self.sums, self.counts = {}, {}

        # A mean of means is exact here: every rank has seen as many micro-batches.
        gathered = ranks.gather(means)
        return {name: sum(each[name] for each in gathered) / len(gathered) for name in means}


class StopSignals:
    """While open, SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR2 make the run save and stop.

    `received` is this rank's signal. `agreed` is the one that all ranks stop for, set at the end of
    the same step on all of them. A second SIGINT ends the process at once. After a run that was
    stopped the others stay ignored, as the process only has its status left to tell.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.agreed: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            # `nohup` has a closed terminal ignored; the other signals SLURM's scripts ignore for
            # us.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A step may take minutes, or never end: a user who presses Ctrl-C again wants out.
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
            # A stopped run's process is about to leave: whoever asked asks again until it has, and
            # one signal more would replace its status. Ctrl-C still ends it.
            leaving = self.agreed is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if leaving else handler)


class Note(Protocol):
    """Takes a point that the loop has reached; see `colorgan.runs.watchdog.Watchdog.note`."""

    def __call__(
        self,
        name: str,
        images_seen: int,
        batches: Iterable[Batch] | None = None,
        *,
        collective: bool = False,
    ) -> None:
        """Note the point."""
        ...


def _note_nothing(
    name: str, images_seen: int, batches: Iterable[Batch] | None = None, *, collective: bool = False
) -> None:
    """Without a watchdog."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls at its points; each is called on all ranks.

    `note(point, images_seen, batches, collective=...)` is called at every point
    (colorgan/runs/watchdog.py).
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
    """Train from `images_seen` to `intervals.total_images`; return images seen.

    A stop signal on any rank ends training on all, at most one step later. The end of a run is
    validated and saved in any case; a stop is saved.

    Raises:
        NotFiniteError: A loss is NaN or infinite (noticed at the next log point, before anything is
            saved).
    """
    ranks, note = strategy.ranks, hooks.note
    batches = loader.train_batches(images_seen)
    meter, clock = Meter(), _Clock(loader)
    # An answer one step late costs no wait: the ranks' question travels while the step runs.
    agreement = LaggedAny(ranks)

    while images_seen < intervals.total_images:
        note("wait for the loader", images_seen)
        micro_batches = next(batches)
        note("batch read", images_seen, micro_batches)
        rates = _train_step(task, strategy, micro_batches, images_seen, intervals, meter, note)

        before, images_seen = images_seen, images_seen + intervals.global_batch_size
        clock.count(intervals.global_batch_size)
        note("end of the step: agree on stopping", images_seen, collective=True)
        # A rank that left the loop alone would leave the others waiting in their next collective.
        if agreement.update(stop.received is not None):
            stop.agreed = next(name for name in ranks.gather(stop.received) if name)

        due = _Due(intervals, before, images_seen, stopped=stop.agreed is not None)
        if due.report:
            note("gather what is logged", images_seen, collective=True)
            values = meter.flush(ranks)
            # The flush has waited for the device: that time belongs to the steps.
            clock.count(0)
            # Before the save below: a checkpoint of NaN would replace the last good one.
            _check_finite(values, images_seen)
            hooks.report(clock.report(images_seen, values, rates))
        if due.validation:
            note("validate", images_seen)
            hooks.validate(images_seen)
        if due.save:
            note("save", images_seen, collective=True)
            hooks.save(images_seen)
            note("saved", images_seen)
        # Validation and saving are not training: images per second leave them out.
        clock.start()
        if stop.agreed is not None:
            break

    # The last question is still under way; an unmatched collective would meet the next one.
    agreement.finish()
    return images_seen


def _train_step(
    task: Task,
    strategy: Strategy,
    micro_batches: Sequence[Batch],
    images_seen: int,
    intervals: Intervals,
    meter: Meter,
    note: Note,
) -> dict[str, float]:
    """Train every phase in turn; return the learning rates by phase."""
    shared = _shared(task, strategy, micro_batches, images_seen, note)
    rates = {}
    for phase in task.phases:
        meter.add(_turn(task, strategy, phase, micro_batches, images_seen, note, shared))
        rates[phase.name] = phase.learning_rate(images_seen)

    note("end of the step: shared statistics", images_seen, collective=True)
    # After all phases: running statistics differ by rank until then, and the EMA copies them.
    strategy.end_step(intervals.global_batch_size)
    return rates


def _shared(
    task: Task, strategy: Strategy, micro_batches: Sequence[Batch], images_seen: int, note: Note
) -> object:
    """Return what the turns of this step share, or None.

    With several micro-batches nothing is shared: all their graphs would be kept at once, and memory
    is why a batch is cut into micro-batches.
    """
    if len(micro_batches) > 1 or len(task.phases) < 2:
        return None

    owner = task.phases[-1]
    # Outside the turns: within another phase's turn the owner's network is frozen.
    note(f"{owner.name}: forward pass for all turns", images_seen, collective=True)
    with strategy.micro_step(owner, last=True), strategy.autocast():
        return task.share(micro_batches[0], strategy.networks(owner))


@dataclass(frozen=True)
class _Due:
    """What is to be done after a step that went from `before` to `now` images."""

    intervals: Intervals
    before: int
    now: int
    stopped: bool

    def _reached(self, every: int) -> bool:
        """Whether the step reached a multiple of `every`, or the end."""
        ended = self.now >= self.intervals.total_images
        return ended or bool(every and self.before // every < self.now // every)

    @property
    def save(self) -> bool:
        return self.stopped or self._reached(self.intervals.save_every_images)

    @property
    def report(self) -> bool:
        """Also before each save and validation: NaN is noticed before it is kept or judged."""
        return self.save or self.validation or self._reached(self.intervals.log_every_images)

    @property
    def validation(self) -> bool:
        # A stopped run has seconds until it is killed: they are for saving.
        return not self.stopped and self._reached(self.intervals.validate_every_images)


def _turn(
    task: Task,
    strategy: Strategy,
    phase: Phase,
    micro_batches: Sequence[Batch],
    images_seen: int,
    note: Note,
    shared: object,
) -> dict[str, Tensor]:
    """Train one phase of one step, accumulating over the micro-batches.

    Return the means of what was logged.
    """
    meter = Meter()
    networks = strategy.networks(phase)
    count = len(micro_batches)

    with strategy.turn(phase):
        for index, batch in enumerate(micro_batches):
            last = index == count - 1  # its backward pass shares the gradients
            note(f"{phase.name}: micro-batch {index + 1} of {count}", images_seen, collective=last)
            with strategy.micro_step(phase, last=last):
                with strategy.autocast():
                    loss, values = task.loss(phase, batch, networks, shared)
                # The gradient is the mean over the global batch, however it is cut into
                # micro-batches.
                strategy.backward(phase, loss / count)
            meter.add({f"loss/{phase.name}": loss, **values})

        note(f"{phase.name}: update", images_seen, collective=True)
        norm = strategy.step(phase, images_seen)

    return {**meter.means(), f"gradient_norm/{phase.name}": norm}


def _check_finite(values: Mapping[str, float], images_seen: int) -> None:
    for name, value in values.items():
        # Looked at on the host, at log points only: a check in every step would wait for the
        # device.
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{name} is {value} at {images_seen} images: lower the learning rate or set "
                "gradient_clip_norm, in a new --run; this run's checkpoints are from before"
            )


class _Clock:
    """Images per second and the loader's share of the time, without validation and saving."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._elapsed = 0.0
        self._images = 0
        self._waited = loader.wait_s
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def count(self, num_images: int) -> None:
        """Count the time since the last call, and the images trained in it."""
        now = time.perf_counter()
        self._elapsed += now - self._since
        self._since = now
        self._images += num_images

    def report(
        self, images_seen: int, values: dict[str, float], rates: dict[str, float]
    ) -> StepReport:
        # A clock with coarse ticks may show no time at all between two reports.
        elapsed = max(self._elapsed, 1e-9)
        waited = self._loader.wait_s - self._waited
        report = StepReport(
            images_seen, values, self._images / elapsed, min(1.0, waited / elapsed), rates
        )
        self._elapsed, self._images, self._waited = 0.0, 0, self._loader.wait_s
        return report
