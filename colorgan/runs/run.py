"""A run folder: what a training run writes, and how it is resumed.

    <run>/recipe.yaml  log.jsonl  tensorboard/  pictures/  checkpoints/  and consolidated models

    with open_run(recipe, ranks, ...) as run:
        images_seen = run.resume(strategy)
        fit(..., hooks from run.report, run.save, ...)
        run.finish_saving()

Rerunning the command resumes from the newest intact checkpoint; another recipe or other data is
refused with the difference.
"""

from __future__ import annotations

import faulthandler
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from colorgan.checkpoints.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_path,
    images_of,
    latest_checkpoint,
)
from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.config.recipe import RunRecipe
from colorgan.config.settings import dump_recipe
from colorgan.data import Batch, Loader
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks, first_line, is_lost_rank
from colorgan.errors import (
    ColorganError,
    ExitStatus,
    LostRankError,
    NotFiniteError,
    SaveError,
    UsageError,
)
from colorgan.files import RUN, owned_folder, what_is, whole
from colorgan.models.model_config import ModelConfig
from colorgan.runs.display import Display
from colorgan.runs.health import HealthWatch
from colorgan.runs.log import Kind, RunLog, read_log
from colorgan.runs.provenance import device_name, source_version, versions
from colorgan.runs.recipe import (
    RECIPE,
    check_length,
    compare_recipes,
    read_recipe,
    refuse_change,
    write_recipe,
)
from colorgan.runs.saving import (
    RunSaver,
    RunState,
    changed_versions,
    check_same_data,
    check_same_start,
)
from colorgan.runs.trackers import Trackers, check_trackers
from colorgan.runs.watchdog import Watchdog, lost_rank_text
from colorgan.training.automatic import speed_hint
from colorgan.training.loop import StepReport
from colorgan.training.plan import start_text


@dataclass(frozen=True)
class RunResult:
    """How a run ended, by itself or stopped by a signal after saving, and its last scores."""

    images_seen: int
    stopped: str | None
    scores: dict[str, float]

    @property
    def exit_status(self) -> ExitStatus:
        """The command's exit status."""
        return ExitStatus.STOPPED if self.stopped else ExitStatus.DONE


@dataclass
class Run:
    """An open run folder. Methods are called on all ranks unless marked.

    Attributes:
        checkpoint: The one that the run resumes from; None at its beginning.
        watchdog: Watches this rank while the run is open.
    """

    recipe: RunRecipe
    ranks: Ranks
    checkpoint: Checkpoint | None
    watchdog: Watchdog
    _saver: RunSaver
    _reporter: Reporter | None  # rank 0 only
    _health: HealthWatch
    _images_seen: int = 0
    _num_skipped: int = 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.run

    def checkpoint_path(self, images_seen: int) -> Path:
        """Return the folder of the checkpoint at that many images."""
        return checkpoint_path(self.folder / CHECKPOINTS, images_seen)

    def resume(self, strategy: Strategy, *, with_optimizers: bool = True) -> int:
        """Load the run's checkpoint, if there is one, into the strategy; return images seen."""
        if self.checkpoint is None:
            return 0
        strategy.load_state(self.checkpoint, with_optimizers=with_optimizers)
        return self.checkpoint.images_seen

    def save(self, strategy: Strategy, images_seen: int) -> None:
        """Write a checkpoint of everything the run needs to resume.

        It is logged at a later report or by `finish_saving`.

        Raises:
            SaveError: A rank could not write; the earlier checkpoints are intact.
        """
        self._log_published(self._saver.start(strategy, images_seen))

    def finish_saving(self) -> None:
        """Wait until the checkpoint in progress, if there is one, is published.

        Raises:
            SaveError: As in `save`.
        """
        self._log_published(self._saver.finish())

    def _log_published(self, paths: list[Path]) -> None:
        for path in paths:
            images_seen = images_of(path)
            self.record("save", images_seen, path=str(path.relative_to(self.folder)))

    def report(self, step: StepReport, loader: Loader) -> None:
        """Log and show what the loop reports, and the samples that the loader skipped."""
        self._images_seen = step.images_seen
        if self._reporter is not None:
            self._reporter.step(step, self.ranks.device)

        warnings = self._health.judge(step.values)
        slow = self._health.judge_rate(step.images_per_s, step.wait_share)
        for warning in (*warnings, *([slow] if slow else [])):
            self.record("event", step.images_seen, text=warning)
            self.message(f"at {step.images_seen:,} images: {warning}")

        self._log_skipped(loader)
        # At log points only: asking is a collective call.
        self._log_published(self._saver.take_published())

    def _log_skipped(self, loader: Loader) -> None:
        """Log and show what the loaders of all ranks skipped since the last call."""
        skipped = loader.replaced[self._num_skipped :]
        self._num_skipped = len(loader.replaced)
        texts = [f"sample {bad.sample_id} skipped: {bad.reason}" for bad in skipped]
        # All ranks gather, whether they skipped any or not.
        for rank_texts in self.ranks.gather(texts):
            for text in rank_texts:
                self.record("event", self._images_seen, text=text)
                self.message(text)

    def note(
        self,
        name: str,
        images_seen: int,
        batches: Iterable[Batch] | None = None,
        *,
        collective: bool = False,
    ) -> None:
        """Tell the watchdog, and the display on rank 0, which point training has reached."""
        self.watchdog.note(name, images_seen, batches, collective=collective)
        if self._reporter is not None:
            self._reporter.display.seen(images_seen)

    def record(
        self, kind: Kind, images_seen: int, values: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        """Append a line to the log. Rank 0 writes, others do nothing."""
        if self._reporter is not None:
            self._reporter.record(kind, images_seen, values, **fields)

    def picture(self, name: str, images_seen: int, path: Path) -> None:
        """Pass a picture of this run folder on to the trackers. Rank 0 does, others do nothing."""
        if self._reporter is not None:
            self._reporter.trackers.picture(name, images_seen, path)

    def message(self, text: str) -> None:
        """Show a line. Rank 0 shows, others do nothing."""
        if self._reporter is not None:
            self._reporter.display.message(text)


@dataclass
class Reporter:
    """Where rank 0 writes what happens: log, trackers, display."""

    folder: Path
    log: RunLog
    trackers: Trackers
    display: Display

    def step(self, step: StepReport, device: torch.device) -> None:
        """Report the values of a log point."""
        # Into the log but not onto the screen's value lines, where they have places of their own.
        extra = {"images_per_s": step.images_per_s, "wait_share": step.wait_share}
        self.record("train", step.images_seen, {**step.values, **extra})
        rates = [f"{name} {rate:.3g}" for name, rate in step.learning_rates.items()]
        further = {"learning rate": "   ".join(rates), "memory": _memory_text(device)}
        self.display.update(
            step.images_seen, step.values, step.images_per_s, step.wait_share, further
        )

        tracked = {f"learning_rate/{name}": rate for name, rate in step.learning_rates.items()}
        self.trackers.values("train", step.images_seen, {**tracked, **_device_memory(device)})

    def record(
        self, kind: Kind, images_seen: int, values: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        """Append a line to the log, and its values to the trackers.

        A log that cannot be written (full disk) is reported and does not end the run: a checkpoint
        that cannot be written does.
        """
        try:
            self.log.write(kind, images_seen, values, **fields)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self.display.message(f"the log in {self.folder} could not be written: {reason}")
        if values:
            self.trackers.values(kind, images_seen, values)


def _memory_text(device: torch.device) -> str:
    """Return the most memory that this rank has held, of the device or of the process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on the GPU"
    # Linux counts it in KiB.
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def _device_memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {
        "device_memory_mib/allocated": torch.cuda.max_memory_allocated(device) / 2**20,
        "device_memory_mib/reserved": torch.cuda.memory_reserved(device) / 2**20,
    }


@contextmanager
def open_run(
    recipe: RunRecipe,
    ranks: Ranks,
    *,
    total_images: int,
    data_digest: str,
    model: ModelConfig,
    model_role: str,
    title: str,
) -> Iterator[Run]:
    """Open a run folder, which this process group owns while the context is open.

    Called on all ranks.

    Args:
        recipe: The run's recipe; `recipe.run` is the folder.
        ranks: This process among the ranks.
        total_images: The run's length.
        data_digest: Digest of the training set's manifest.
        model: What the trained network is; saved in every checkpoint, for consolidation.
        model_role: The network's name among the phases.
        title: Shown before the progress bar.

    Raises:
        UsageError: Another process trains in the folder, or its recipe is damaged.
        OtherRecipeError: The folder holds a run with another recipe.
        OtherWeightsError: The run started from other weights.
        CheckpointError: It was trained on other data, or no checkpoint is intact.
        LostRankError: Another rank ended while this one waited for it.
    """
    folder = recipe.run
    source = source_version()
    made_with = versions(source)
    plain = recipe.model_dump(mode="json")
    state = RunState(0, data_digest, plain, ranks.world_size, model_role, {}, made_with)
    watchdog = Watchdog(
        folder / "hangs",
        ranks,
        timeout_s=recipe.launch.timeout_s,
        global_batch_size=recipe.batch.global_batch_size,
    )

    with ExitStack() as stack:
        notes: list[str] = []
        # First of all: two runs in one folder would overwrite each other's log.
        ranks.on_all_ranks(lambda: _claim(stack, recipe, ranks))
        stack.enter_context(watchdog)
        # Inside the watchdog: checking gigabytes of digests on a dead disk is where starts hang.
        checkpoint = latest_checkpoint(folder / CHECKPOINTS, ranks, notes.append)
        if checkpoint is not None:
            notes += _check_checkpoint(checkpoint, recipe, state, model)
            notes += _check_length(checkpoint, recipe, ranks, total_images)
        ranks.on_all_ranks(lambda: write_recipe(folder, recipe) if ranks.main else None)

        output = recipe.output
        writer = CheckpointWriter(
            folder / CHECKPOINTS,
            ranks,
            keep_last=output.keep_last,
            keep_every_images=output.keep_every_images,
            background=output.background_save,
        )
        # Registered before the run is used: its thread must end in any case.
        stack.callback(writer.close)
        images_seen = checkpoint.images_seen if checkpoint else 0
        run = Run(
            recipe,
            ranks,
            checkpoint,
            watchdog,
            RunSaver(ranks, state, model, writer),
            _open_reporter(stack, recipe, total_images, images_seen, title) if ranks.main else None,
            HealthWatch(),
            images_seen,
        )
        _log_start(run, total_images, made_with, notes)
        with _errors_reported(run):
            yield run


def _check_length(
    checkpoint: Checkpoint, recipe: RunRecipe, ranks: Ranks, total_images: int
) -> list[str]:
    """Return what to say of a run that is extended. Called on all ranks.

    Raises:
        OtherRecipeError: The new length is not one that the run can be extended to.
    """
    change = compare_recipes(RunState.of(checkpoint).recipe, recipe)
    # Rank 0's, as on other hosts the log may not be there.
    images_seen = checkpoint.images_seen
    before = ranks.gather(_logged_length(recipe.run, images_seen) if ranks.main else None)[0]
    extended = check_length(change, images_seen, before, total_images)
    return [extended] if extended else []


def check_folder(recipe: RunRecipe) -> None:
    """Find what would stop a run of this recipe in its folder; nothing is written. Rank 0 only.

    Raises:
        UsageError: The folder holds something else, or its recipe is damaged.
        OtherRecipeError: It holds a run with another recipe.
    """
    check_trackers(recipe.output.trackers)
    if recipe.run.exists() and not recipe.run.is_dir():
        raise UsageError(f"{recipe.run} is a file: name a folder with --run")
    held = what_is(recipe.run)
    if held not in ("", RUN):
        raise UsageError(f"{recipe.run} holds {held}: choose another --run for this run")
    # The recipe before the checkpoints: it is there from the first second on.
    path = recipe.run / RECIPE
    if path.exists():
        refuse_change(compare_recipes(read_recipe(path), recipe), recipe.run)


def _claim(stack: ExitStack, recipe: RunRecipe, ranks: Ranks) -> None:
    """Own the folder and compare its recipe. Rank 0 does, others do nothing."""
    if not ranks.main:
        return

    check_folder(recipe)
    stack.enter_context(owned_folder(recipe.run))


def _check_checkpoint(
    checkpoint: Checkpoint,
    recipe: RunRecipe,
    now: RunState,
    model: ModelConfig,
) -> list[str]:
    """Compare a checkpoint with the run that is to resume from it; return notes for the user.

    Also where `recipe.yaml` is gone: a run's checkpoints hold all of it.
    """
    state = RunState.of(checkpoint)
    refuse_change(compare_recipes(state.recipe, recipe), recipe.run)
    check_same_data(checkpoint, state, now.data_digest)
    check_same_start(checkpoint, state, model)

    notes = [f"resumes from {checkpoint.path} ({checkpoint.images_seen:,} images seen)"]
    changed = changed_versions(state, now.versions)
    if changed:
        notes.append(
            f"the checkpoint was written with other versions ({', '.join(changed)}): the result "
            "may differ from an uninterrupted run's in rounding"
        )
    return notes


def _logged_length(folder: Path, images_seen: int) -> int | None:
    """Return the length of the run that wrote the checkpoint at `images_seen`, from its log.

    Rank 0 only.
    """
    try:
        starts = [(entry["images"], whole(entry.get("total_images"))) for entry in read_log(folder)]
    except OSError:
        return None

    known = [(images, length) for images, length in starts if length is not None]
    # An extended run's log has several lengths. A start at the checkpoint's own images went on from
    # it, perhaps with a new length, and was killed before it saved.
    wrote = [length for images, length in known if images < images_seen]
    if wrote:
        return wrote[-1]
    # The log before the checkpoint was lost; the first length since then is the likeliest.
    return known[0][1] if known else None


def _open_reporter(
    stack: ExitStack, recipe: RunRecipe, total_images: int, images_seen: int, title: str
) -> Reporter:
    """Open log, display and trackers. Rank 0 only."""
    log = stack.enter_context(RunLog(recipe.run, images_seen))
    display = stack.enter_context(Display(total_images, images_seen, title))
    trackers = Trackers(recipe.output.trackers, recipe.run, images_seen, display.message)
    stack.callback(trackers.close)
    trackers.recipe(recipe.model_dump(mode="json"), dump_recipe(recipe))
    return Reporter(recipe.run, log, trackers, display)


def _log_start(run: Run, total_images: int, made_with: Mapping[str, str], notes: list[str]) -> None:
    images_seen = run.checkpoint.images_seen if run.checkpoint else 0
    device = device_name(run.ranks.device)
    run.record(
        "event",
        images_seen,
        text="started",
        total_images=total_images,
        ranks=run.ranks.world_size,
        device=device,
        versions=dict(made_with),
    )
    run.message(start_text(run.recipe, run.ranks, device))
    hint = speed_hint(run.recipe, run.ranks)
    if hint is not None:
        run.message(hint)
    for note in notes:
        run.message(note)


@contextmanager
def _errors_reported(run: Run) -> Iterator[None]:
    """Log an error that ends the run, and name the rank that was lost."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NotFiniteError):  # raised on all ranks: what was saved before it stays
            with suppress(SaveError):
                run.finish_saving()

        several = run.ranks.world_size > 1
        lost = _lost_rank(error, run) if several else None
        told = lost or error
        if isinstance(told, ColorganError):
            status = int(told.exit_status)
            run.record("event", run._images_seen, text=str(told), status=status)
        else:
            text = f"{type(error).__name__}: {error}"[:2000]
            run.record("event", run._images_seen, text=text)
        if several:
            # Leaving may hang, too (a communicator that waits for its peer): the stacks, then
            # status 1.
            faulthandler.dump_traceback_later(run.recipe.launch.timeout_s, exit=True)
        if lost is not None:
            raise lost from error
        raise


def _lost_rank(error: BaseException, run: Run) -> LostRankError | None:
    """Return what to raise for an error of a collective call, with the ranks that have ended."""
    if not is_lost_rank(error):
        return None

    # The process table may be a moment behind the connection.
    until = time.monotonic() + 2.0
    while not (gone := run.watchdog.lost_ranks()) and time.monotonic() < until:
        time.sleep(0.1)

    return LostRankError(lost_rank_text(gone, first_line(error)))
