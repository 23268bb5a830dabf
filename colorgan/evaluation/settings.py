"""The settings of launcher/evaluate.py; no heavy import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.recipe import Folder


class EvaluateSettings(BaseModel):
    """What to score, on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="model folder: RUN/generator or RUN/model")
    data: tuple[Folder, ...] = Field(
        min_length=1, description="packed folders to score on, or their URLs"
    )
    cache_dir: Path | None = Field(
        None, description="where shards from URLs are kept; unset: in ~/.cache/colorgan"
    )
    cache_gb: float = Field(
        100.0, gt=0, description="how much of them a node keeps, in gigabytes (1e9 bytes)"
    )
    out: Path | None = Field(None, description="folder for scores and pictures; unset: print only")
    batch_size: Annotated[int, Field(gt=0)] = Field(32, description="images a forward pass")
    inference: Literal["running", "paper"] | None = Field(
        None, description="paper: batch statistics and dropout stay on; unset: as the model says"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of the dropout of paper inference"
    )
    num_pictures: Annotated[int, Field(ge=0)] = Field(8, description="images shown in the pictures")
    own_size: bool = Field(
        False,
        description="a generator: score at each photo's own size too, as colorize does; "
        "needs --image original",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: a GPU where PyTorch finds one"
    )
    timeout_s: Annotated[int, Field(gt=0)] = Field(
        600, description="seconds after which a silent rank ends the run"
    )
