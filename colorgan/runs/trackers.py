"""Experiment trackers (TensorBoard, W&B, MLflow, ...) through `accelerate.tracking`.

They get what the log gets, and learning rates, device memory, the recipe and the validation
pictures. Rank 0 only. A tracker that fails (a server that is down) is dropped with a message: it
never ends a run.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from colorgan.config.settings import leaves, show
from colorgan.errors import UsageError

PROJECT = "colorgan"
TENSORBOARD = "tensorboard"
# The module that a tracker imports, where it is not called as the tracker.
MODULES = {"comet_ml": "comet_ml"}


class Trackers:
    """The trackers of one run.

    Args:
        names: As in `output.trackers`; see `check_trackers`.
        folder: The run folder. TensorBoard writes to `tensorboard/` in it.
        resume_from_images: Images seen by the loaded checkpoint: TensorBoard hides later values.
        complain: Called with a sentence when a tracker fails and is dropped.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        resume_from_images: int,
        complain: Callable[[str], None],
    ) -> None:
        self._complain = complain
        self._trackers: dict[str, Any] = {}
        for name in names:
            start = partial(_start, name, folder, resume_from_images)
            # Listed before it starts, so that `_on` can drop it if that fails.
            self._trackers[name] = None
            self._on(name, start)

    def recipe(self, recipe: Mapping[str, Any], text: str) -> None:
        """Store the run's recipe: as text in TensorBoard, as settings elsewhere."""
        settings = {key: _plain(value) for key, value in leaves(recipe)}
        # Indented text is code in Markdown.
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        for name in list(self._trackers):
            if name == TENSORBOARD:
                self._on(name, lambda tracker: tracker.log({"recipe": indented}, step=0))
            else:
                self._on(name, lambda tracker: tracker.store_init_configuration(settings))

    def values(self, kind: str, images: int, values: Mapping[str, float]) -> None:
        """Log scalars as `kind/name` at step `images`."""
        named = {f"{kind}/{name}": float(value) for name, value in values.items()}
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        for name in list(self._trackers):
            # TensorBoard shows NaN as such; others refuse it.
            if name == TENSORBOARD:
                self._on(name, lambda tracker: tracker.log(named, step=images, new_style=True))
            else:
                self._on(name, lambda tracker: tracker.log(finite, step=images))

    def picture(self, name: str, images: int, path: Path) -> None:
        """Log a PNG at step `images`, where the tracker takes pictures."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels_1HWC = np.asarray(picture.convert("RGB"))[None]
        for each in list(self._trackers):
            extra = {"dataformats": "NHWC"} if each == TENSORBOARD else {}

            def log(tracker: Any, extra: dict[str, str] = extra) -> None:
                if hasattr(tracker, "log_images"):
                    tracker.log_images({name: pixels_1HWC}, step=images, **extra)

            self._on(each, log)

    def close(self) -> None:
        """Finish every tracker."""
        for name in list(self._trackers):
            self._on(name, lambda tracker: tracker.finish())
        self._trackers = {}

    def _on(self, name: str, work: Callable[[Any], Any]) -> None:
        """Do `work` with a tracker (or start it); drop it when it fails."""
        tracker = self._trackers.get(name)
        try:
            result = work(tracker)
        except Exception as error:  # of any library, for any reason
            del self._trackers[name]
            reason = (str(error).splitlines() or [""])[0][:200]
            self._complain(f"{name} is no longer logged to: {type(error).__name__}: {reason}")
            return
        if tracker is None:
            self._trackers[name] = result


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        UsageError: Names the tracker and what to install or write.
    """
    for name in names:
        if name == TENSORBOARD:
            continue
        # Only now: accelerate's table imports what is installed of all trackers.
        known = _classes()
        if name not in known:
            raise UsageError(
                f"output.trackers: {name!r} is unknown; choose from {', '.join(sorted(known))}"
            )
        # Looked up, not imported: importing takes seconds.
        module = MODULES.get(name, name)
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"output.trackers: {name} is not installed: `pip install {module}`, or leave it out"
            )


def _classes() -> dict[str, Any]:
    """Return accelerate's trackers by name, fit to be used without its `Accelerator`."""
    import accelerate.tracking  # half a second, on rank 0 only

    # Its logger and its "main process" decorator would join a process group of their own.
    accelerate.tracking.logger = _Logger(logging.getLogger(accelerate.tracking.__name__), {})
    return {
        str(name): type(kind.__name__, (kind,), {"main_process_only": False})
        for name, kind in accelerate.tracking.LOGGER_TYPE_TO_CLASS.items()
    }


class _Logger(logging.LoggerAdapter):  # type: ignore[type-arg]
    def warning_once(self, *args: Any) -> None:
        """Warn; accelerate's own logger does it once per text."""
        self.warning(*args)


def _start(name: str, folder: Path, resume_from_images: int, _: Any) -> Any:
    kind = _classes()[name]
    if name == TENSORBOARD:
        # Values of steps that are run again would be drawn as a second curve.
        tracker = kind(TENSORBOARD, str(folder), purge_step=resume_from_images + 1)
    elif name == "wandb":
        tracker = kind(PROJECT, name=folder.name, dir=str(folder))
    elif name == "mlflow":
        tracker = kind(PROJECT, run_name=folder.name)
    elif kind.requires_logging_directory:
        tracker = kind(PROJECT, logging_dir=str(folder))
    else:
        tracker = kind(PROJECT)
    tracker.start()
    return tracker


def _plain(value: Any) -> bool | str | float | int | None:
    return value if isinstance(value, bool | str | float | int | None) else show(value)
