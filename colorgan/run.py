"""A run folder: what a training run leaves on disk, and how it is taken up again.

    <run>/recipe.yaml  log.jsonl  tensorboard/  pictures/  checkpoints/  and what consolidation makes of it

The same command started again goes on from the newest intact checkpoint; another recipe or other data is refused with
the difference. Methods are called on all ranks unless marked.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from colorgan.checkpoint import Checkpoint, checkpoint_path, latest_checkpoint, save_checkpoint
from colorgan.cli import dump_recipe, recipe_difference
from colorgan.display import Display
from colorgan.distributed import DataParallel, Ranks
from colorgan.errors import CheckpointError, UsageError
from colorgan.model_folder import ModelConfig, probe, source_version
from colorgan.recipe import RunRecipe
from colorgan.runlog import Kind, RunLog
from colorgan.training import StepReport

# What may change between two starts of one run: it does not enter the weights. `data.train` is compared by its digest.
FREE_KEYS = (
    *("run", "dry_run", "output", "launch"),
    *("data.train", "data.val", "data.decode_threads", "data.prefetch_batches", "data.max_bad_share"),
)
RECIPE = "recipe.yaml"
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after saving; the same command goes on


@dataclass(frozen=True)
class Outcome:
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
        self._log: RunLog | None = None
        self.display = Display(total_images, 0, title, enabled=False)

    def _claim(self) -> None:
        """Rank 0: lock the folder, and compare or write its recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._open.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.folder} is in use by another process: choose another --run") from None
        path = self.folder / RECIPE
        if path.exists():
            _refuse_difference(yaml.safe_load(path.read_text()), self._plain, self.folder)
        partial = path.with_name(f".{RECIPE}.partial")
        partial.write_text(dump_recipe(self.recipe))
        partial.replace(path)

    def restore(self) -> Checkpoint | None:
        """Return the newest intact checkpoint of this run, or None at its beginning; opens log and display.

        Raises:
            CheckpointError: it was trained on other data.
        """
        found = latest_checkpoint(self.folder / "checkpoints", self.ranks, self.message)
        if found is not None and found.state["data_digest"] != self._digest:
            raise CheckpointError(
                f"{found.path} was trained on other data (manifest digest {found.state['data_digest'][:12]}, "
                f"now {self._digest[:12]}): give the folders it was trained on, or another --run"
            )
        images_seen = found.images_seen if found else 0
        if self.ranks.main:
            self._log = self._open.enter_context(RunLog(self.folder, images_seen))
            self.display = self._open.enter_context(Display(self.total_images, images_seen, self._title))
            if found:
                self.message(f"goes on from {found.path} ({images_seen:,} images seen)")
        return found

    def checkpoint_path(self, images_seen: int) -> Path:
        """Return the folder of the checkpoint at that many images."""
        return checkpoint_path(self.folder / "checkpoints", images_seen)

    def load(self, strategy: DataParallel, found: Checkpoint, *, with_optimizers: bool = True) -> int:
        """Give the strategy what a checkpoint holds; return the images seen."""
        strategy.load_state({role: found.tensors(role) for role in found.roles()}, with_optimizers=with_optimizers)
        return found.images_seen

    def save(self, strategy: DataParallel, images_seen: int) -> None:
        """Write a checkpoint of everything the run needs to go on."""
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
        path = save_checkpoint(
            self.folder / "checkpoints",
            ranks=self.ranks,
            roles={**strategy.state(), "probe": self._probes(strategy)},
            state=state,
            keep_last=self.recipe.output.keep_last,
            keep_every_images=self.recipe.output.keep_every_images,
        )
        self.record("save", images_seen, path=str(path.relative_to(self.folder)))

    def _probes(self, strategy: DataParallel) -> dict[str, torch.Tensor]:
        size = self._model.architecture.image_size
        outputs = {"raw": probe(strategy.bare[self._role], size, self.ranks.device)}
        if strategy.average is not None:
            outputs["average"] = probe(strategy.average, size, self.ranks.device)
        return outputs

    def report(self, step: StepReport) -> None:
        """Log and show what the loop reports. Rank 0 shows, others do nothing."""
        extra = {"images_per_s": step.images_per_s, "wait_share": step.wait_share}
        self.record("train", step.images_seen, {**step.values, **extra})
        self.display.update(step.images_seen, step.values, step.images_per_s, step.wait_share)

    def record(self, kind: Kind, images_seen: int, values: Mapping[str, float] | None = None, **fields: Any) -> None:
        """Append a line to the log. Rank 0 writes, others do nothing."""
        if self._log is not None:
            self._log.write(kind, images_seen, values, **fields)

    def message(self, text: str) -> None:
        """Show a line. Rank 0 shows, others do nothing."""
        if self.ranks.main:
            self.display.message(text)

    def __enter__(self) -> Run:
        try:
            _agree(self.ranks, self._claim)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _agree(ranks: Ranks, work: Callable[[], None]) -> None:
    """Do rank 0's `work`; when it raises a sentence, every rank raises it."""
    problem = ""
    if ranks.main:
        try:
            work()
        except (UsageError, OSError) as error:
            problem = str(error)
    if problem := ranks.gather(problem)[0]:
        raise UsageError(problem)


def _refuse_difference(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    lines = recipe_difference(old, new, ignore=FREE_KEYS)
    if lines:
        raise UsageError(
            f"{folder} holds a run of another recipe: choose another --run, or undo\n  " + "\n  ".join(lines)
        )
