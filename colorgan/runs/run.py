"""A run folder: what a training run leaves on disk, and how it is taken up again.

    <run>/recipe.yaml  log.jsonl  tensorboard/  pictures/  checkpoints/  and what consolidation makes of it

The same command started again goes on from the newest intact checkpoint; another recipe or other data is refused with
the difference. Methods are called on all ranks unless marked.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torch.distributed import DistError

from colorgan.checkpoints.checkpoint import Checkpoint, checkpoint_path, latest_checkpoint
from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.config.recipe import RunRecipe
from colorgan.config.settings import dump_recipe, recipe_difference
from colorgan.data import Loader
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.errors import (
    CheckpointError,
    ColorganError,
    LostRankError,
    NotFiniteError,
    OtherRecipeError,
    OtherWeightsError,
    SaveError,
    UsageError,
)
from colorgan.models.model_folder import ModelConfig, probe
from colorgan.runs.display import Display
from colorgan.runs.health import HealthWatch
from colorgan.runs.log import Kind, RunLog
from colorgan.runs.provenance import device_name, source_version, versions
from colorgan.runs.watchdog import Watchdog
from colorgan.training.loop import StepReport

# What may change between two starts of one run: it does not enter the weights. `data.train` is
# compared by its digest. `data.hardware_decoder_share` is not among them: a GPU's hardware decoder
# gives other pixels than its CUDA decoder, by a level or two.
FREE_KEYS = (
    *("run", "dry_run", "output", "launch"),
    *(
        "data.train",
        "data.val",
        "data.decode_threads",
        "data.prefetch_batches",
        "data.max_bad_share",
    ),
    *("data.cache_dir", "data.cache_gb"),
)
RECIPE = "recipe.yaml"
OTHER_RECIPE, OTHER_WEIGHTS = (
    "of another recipe",
    "began with other weights",
)  # a study looks for these
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after saving; the same command goes on (all: colorgan/errors.py)
# What torch's collectives say, as RuntimeError, when a peer is gone (gloo) or did not come in time.
LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|gloo|Socket", re.ASCII
)


@dataclass(frozen=True)
class RunResult:
    """How a run ended: by itself, or stopped by a signal (named) after saving; the last scores, if validated."""

    images_seen: int
    stopped: str | None
    scores: dict[str, float]


class Run:
    """A run folder that this process group owns while the context is open.

    Args:
        model: what the trained network is; saved in every checkpoint, for consolidation.
        model_role: the network's name among the phases.

    Raises:
        UsageError: the folder holds a run of another recipe, or another process is training in it.
    """

    def __init__(
        self,
        recipe: RunRecipe,
        ranks: Ranks,
        *,
        total_images: int,
        data_digest: str,
        model: ModelConfig,
        model_role: str,
        title: str,
    ) -> None:
        self.folder, self.recipe, self.ranks = recipe.run, recipe, ranks
        self.total_images = total_images
        self._plain = recipe.model_dump(mode="json")
        self._digest = data_digest
        self._model, self._role = model, model_role
        self._title = title
        self._version = source_version()
        self._open = ExitStack()
        output = recipe.output
        self._writer = CheckpointWriter(
            self.folder / "checkpoints",
            ranks,
            keep_last=output.keep_last,
            keep_every_images=output.keep_every_images,
            background=output.background_save,
        )
        self._open.callback(self._writer.close)
        self._num_told = 0
        self._log: RunLog | None = None
        self.display = Display(total_images, 0, title, enabled=False)
        self._images_seen = 0
        self._health = HealthWatch()
        self.watchdog = Watchdog(
            self.folder / "hangs",
            ranks,
            timeout_s=recipe.launch.timeout_s,
            global_batch_size=recipe.batch.global_batch_size,
        )

    def _claim(self) -> None:
        """Rank 0: lock the folder, and compare or write its recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._open.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{self.folder} is in use by another process: choose another --run"
            ) from None
        path = self.folder / RECIPE
        if path.exists():
            _refuse_difference(_read_recipe(path), self._plain, self.folder)
        partial = path.with_name(f".{RECIPE}.partial")
        partial.write_text(dump_recipe(self.recipe))
        partial.replace(path)

    def restore(self) -> Checkpoint | None:
        """Return the newest intact checkpoint of this run, or None at its beginning; opens log and display.

        Raises:
            CheckpointError: it was trained on other data, or began with other weights.
        """
        found = latest_checkpoint(self.folder / "checkpoints", self.ranks, self.message)
        if found is not None and found.state["data_digest"] != self._digest:
            raise CheckpointError(
                f"{found.path} was trained on other data (manifest digest {found.state['data_digest'][:12]}, "
                f"now {self._digest[:12]}): give the folders it was trained on, or another --run"
            )
        began = found.state["model"].get("init_digest") if found else ""
        if found is not None and began and began != self._model.init_digest:
            raise OtherWeightsError(
                f"{found.path} {OTHER_WEIGHTS} than those at init now (digest {began[:12]}, now "
                f"{self._model.init_digest[:12]}): give another --run, or remove {self.folder}"
            )
        self._images_seen = images_seen = found.images_seen if found else 0
        if self.ranks.main:
            self._log = self._open.enter_context(RunLog(self.folder, images_seen))
            self.display = self._open.enter_context(
                Display(self.total_images, images_seen, self._title)
            )
            self.record(
                "event",
                images_seen,
                text="started",
                total_images=self.total_images,
                ranks=self.ranks.world_size,
                device=device_name(self.ranks.device),
                versions=versions(self._version),
            )
            if found:
                self.message(f"goes on from {found.path} ({images_seen:,} images seen)")
        return found

    def checkpoint_path(self, images_seen: int) -> Path:
        """Return the folder of the checkpoint at that many images."""
        return checkpoint_path(self.folder / "checkpoints", images_seen)

    def load(self, strategy: Strategy, found: Checkpoint, *, with_optimizers: bool = True) -> int:
        """Give the strategy what a checkpoint holds; return the images seen."""
        strategy.load_state(found, with_optimizers=with_optimizers)
        return found.images_seen

    def save(self, strategy: Strategy, images_seen: int) -> None:
        """Write a checkpoint of everything the run needs to go on; it is there at a later report or `finish_saving`.

        Raises:
            SaveError: a rank could not write; the checkpoints before are as they were.
        """
        model = self._model.model_copy(
            update={
                "images_seen": images_seen,
                "data_digest": self._digest,
                "recipe": self._plain,
                "source_version": self._version,
            }
        )
        state = {
            "images_seen": images_seen,
            "data_digest": self._digest,
            "recipe": self._plain,
            "world_size": self.ranks.world_size,
            "model_role": self._role,
            "model": model.model_dump(mode="json"),
        }
        roles = {**strategy.state(), "probe": self._probes(strategy)}
        self._published(lambda: self._writer.start(roles, state))

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written, if there is one, is there. Called on all ranks.

        Raises:
            SaveError: a rank could not write it; the checkpoints before are as they were.
        """
        self._published(self._writer.finish)

    def _published(self, work: Callable[[], list[Path]]) -> None:
        try:
            paths = work()
        except CheckpointError as error:
            raise SaveError(str(error)) from None
        for path in paths:
            images_seen = int(path.name.rpartition("-")[2])
            self.record("save", images_seen, path=str(path.relative_to(self.folder)))

    def _probes(self, strategy: Strategy) -> dict[str, torch.Tensor]:
        size = self._model.architecture.image_size
        outputs = {"raw": probe(strategy.evaluated(self._role, ema=False), size, self.ranks.device)}
        if strategy.ema_name == self._role:
            outputs["average"] = probe(strategy.evaluated(self._role), size, self.ranks.device)
        return outputs

    def report(self, step: StepReport, loader: Loader) -> None:
        """Log and show what the loop reports, and what the loader skipped. Called on all ranks; rank 0 shows."""
        extra = {"images_per_s": step.images_per_s, "wait_share": step.wait_share}
        self._images_seen = step.images_seen
        self.record("train", step.images_seen, {**step.values, **extra})
        self.display.update(step.images_seen, step.values, step.images_per_s, step.wait_share)
        for warning in self._health.judge(step.values):
            self.record("event", step.images_seen, text=warning)
            self.message(f"at {step.images_seen:,} images: {warning}")
        self._tell_bad_samples(loader)
        self._published(self._writer.take_published)

    def _tell_bad_samples(self, loader: Loader) -> None:
        """Log and show what the loaders of all ranks skipped since the last call. Called on all ranks."""
        new, self._num_told = loader.replaced[self._num_told :], len(loader.replaced)
        for told in self.ranks.gather(
            [f"sample {bad.sample_id} skipped: {bad.reason}" for bad in new]
        ):
            for text in told:
                self.record("event", self._images_seen, text=text)
                self.message(text)

    def record(
        self, kind: Kind, images_seen: int, values: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        """Append a line to the log. Rank 0 writes, others do nothing.

        A log that cannot be written (full disk) is told and does not end the run: a checkpoint that cannot does.
        """
        if self._log is None:
            return
        try:
            self._log.write(kind, images_seen, values, **fields)
        except OSError as error:
            self.message(f"the log in {self.folder} could not be written: {error.strerror}")

    def message(self, text: str) -> None:
        """Show a line. Rank 0 shows, others do nothing."""
        if self.ranks.main:
            self.display.message(text)

    def __enter__(self) -> Run:
        try:
            self.ranks.on_all_ranks(self._claim if self.ranks.main else lambda: None)
            self._open.enter_context(self.watchdog)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(value, NotFiniteError):  # told on all ranks: what was saved before it stays
            with suppress(SaveError):
                self.finish_saving()
        lost = _lost_rank(value, self) if self.ranks.world_size > 1 else None
        if error := lost or (value if isinstance(value, ColorganError) else None):
            self.record("event", self._images_seen, text=str(error), status=error.exit_status)
        if value is not None and self.ranks.world_size > 1:
            # Leaving is not to hang either (a communicator that waits for the peer): the stacks, then status 1.
            faulthandler.dump_traceback_later(self.recipe.launch.timeout_s, exit=True)
        with suppress(OSError):  # a full disk, told before
            self._open.__exit__(kind, value, trace)
        if lost is not None:
            raise lost from value


def _lost_rank(value: BaseException | None, run: Run) -> LostRankError | None:
    """Return what to raise for an error of a collective call, with the ranks of this machine that have ended."""
    if not isinstance(value, RuntimeError) or not (
        isinstance(value, DistError) or LOST.search(str(value))
    ):
        return None
    until = time.monotonic() + 2.0
    while not (gone := run.watchdog.lost_ranks()) and time.monotonic() < until:
        time.sleep(0.1)
    who = ", ".join(
        f"rank {s.rank} (process {s.process} on {s.host}) ended, last at '{s.point}'" for s in gone
    )
    return LostRankError(
        f"{who or 'another rank cannot be reached'}: {str(value).splitlines()[0][:200]}; "
        "the same command goes on from the last checkpoint"
    )


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} is damaged: choose another --run, or put the run's recipe back")
    return recipe


def _refuse_difference(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    lines = recipe_difference(old, new, ignore=FREE_KEYS)
    if lines:
        raise OtherRecipeError(
            f"{folder} holds a run {OTHER_RECIPE}: choose another --run, or undo\n  "
            + "\n  ".join(lines)
        )
