"""Trackers: TensorBoard for real, others as accelerate defines them; none can end a run."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from colorgan.errors import UsageError
from colorgan.runs.trackers import Trackers, check_trackers

RECIPE = {
    "seed": 3,
    "data": {"train": ["a", "b"], "cache_dir": None},
    "network": {"width": 4},
}


def log_run(
    folder: Path,
    resume: int = 0,
    until: int = 50,
    names: Any = ("tensorboard",),
) -> None:
    trackers = Trackers(names, folder, resume, pytest.fail)
    trackers.recipe(RECIPE, "seed: 3\n")
    for images in range(resume + 10, until + 1, 10):
        values = {"loss/generator": 1 / images, "learning_rate/generator": 2e-4}
        trackers.values("train", images, values)
    trackers.close()


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_has_the_scalars_of_one_uninterrupted_run(tmp_path: Path) -> None:
    log_run(tmp_path)
    # TensorBoard reads files in the order of their names, which begin with the second.
    time.sleep(1.1)
    log_run(tmp_path, resume=20, until=30)
    events = events_of(tmp_path)
    steps = {}
    for name in events.Tags()["tensors"]:
        if name.startswith("train/"):
            steps[name] = [event.step for event in events.Tensors(name)]
    expected = [10, 20, 30]

    assert steps == {"train/loss/generator": expected, "train/learning_rate/generator": expected}


def test_tensorboard_has_pictures_and_the_recipe(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("L", (5, 4), 128).save(picture)
    trackers = Trackers(
        ["tensorboard"],
        tmp_path,
        0,
        pytest.fail,
    )
    trackers.recipe(RECIPE, "seed: 3\n")
    trackers.picture("validation", 20, picture)
    trackers.values(
        "train",
        20,
        {"loss": math.nan},
    )
    trackers.close()
    tags = events_of(tmp_path).Tags()["tensors"]

    assert any("recipe" in tag for tag in tags)
    assert "train/loss" in tags


class Recorder(accelerate.tracking.GeneralTracker):
    """Stands for a tracker that is installed."""

    name = "recorder"
    requires_logging_directory = False
    calls: list[tuple[str, Any]]

    def __init__(self, project: str) -> None:
        super().__init__()
        self.calls = Recorder.log_of_calls

    log_of_calls: list[tuple[str, Any]] = []  # noqa: RUF012

    @property
    def tracker(self) -> Any:
        return self.calls

    @accelerate.tracking.on_main_process
    def start(self) -> None:
        self.calls.append(("start", None))

    @accelerate.tracking.on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        accelerate.tracking.logger.debug("as accelerate's own trackers do")
        self.calls.append(("recipe", values))

    @accelerate.tracking.on_main_process
    def log(
        self,
        values: dict[str, Any],
        step: int | None = None,
    ) -> None:
        self.calls.append(("log", (step, values)))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(Recorder, "log_of_calls", calls)
    classes = {**accelerate.tracking.LOGGER_TYPE_TO_CLASS, "recorder": Recorder}
    monkeypatch.setattr(accelerate.tracking, "LOGGER_TYPE_TO_CLASS", classes)
    return calls


def test_any_tracker_of_accelerate_gets_the_same(
    tmp_path: Path, recorder: list[tuple[str, Any]]
) -> None:
    log_run(tmp_path, until=10, names=["recorder"])
    settings = {"seed": 3, "data.train": "[a, b]", "data.cache_dir": None, "network.width": 4}
    assert [name for name, _ in recorder] == ["start", "recipe", "log"]
    assert dict(recorder)["recipe"].keys() == settings.keys()
    values = {"train/loss/generator": 0.1, "train/learning_rate/generator": 2e-4}
    assert recorder[-1] == ("log", (10, values))


def test_a_tracker_that_fails_is_dropped_with_one_message(
    tmp_path: Path,
    recorder: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Recorder, values: Any, step: int | None = None) -> None:
        raise ConnectionError("no route to the server")

    monkeypatch.setattr(Recorder, "log", fail)
    messages: list[str] = []
    trackers = Trackers(
        ["recorder", "tensorboard"],
        tmp_path,
        0,
        messages.append,
    )
    for images in (10, 20):
        trackers.values("train", images, {"loss": 1.0})
    trackers.close()
    assert messages == ["recorder is no longer logged to: ConnectionError: no route to the server"]
    assert len(events_of(tmp_path).Tensors("train/loss")) == 2


def test_unknown_and_missing_trackers_are_refused() -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(UsageError, match=r"'tensorbord' is unknown; choose from .*tensorboard"):
        check_trackers(["tensorbord"])
    with pytest.raises(UsageError, match="wandb is not installed: `pip install wandb`"):
        check_trackers(["wandb"])
