"""The settings of launcher/probe.py; no heavy import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.recipe import Folder

# Here and not in record.py, so that `--help` stays free of heavy imports.
RANDOM, RESULT = "random", "probe.json"


class DataSettings(BaseModel):
    """The labelled sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[Folder, ...] = Field(
        min_length=1, description="packed folders whose labels are learned from"
    )
    test: tuple[Folder, ...] = Field(min_length=1, description="packed folders to score on")
    cache_dir: Path | None = Field(
        None, description="where shards from URLs are kept; unset: in ~/.cache/colorgan"
    )
    cache_gb: float = Field(
        100.0, gt=0, description="how much of them a node keeps, in gigabytes (1e9 bytes)"
    )


class ProbeSettings(BaseModel):
    """What to judge, on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        description="generator folder, or `random`: the same network with weights from the seed"
    )
    like: Path | None = Field(None, description="generator folder whose architecture `random` has")
    protocol: Literal["linear", "lowshot", "knn", "softmax", "all"] = Field(
        "all",
        description="what is done with the features; softmax: one label per image; all: the others",
    )
    data: DataSettings
    out: Path = Field(description=f"folder for {RESULT}")
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(
        0, description="of the low-shot draws, and of random weights"
    )
    batch_size: Annotated[int, Field(gt=0)] = Field(32, description="images a forward pass")
    timeout_s: Annotated[int, Field(gt=0)] = Field(
        600, description="seconds after which a silent rank ends the run"
    )
