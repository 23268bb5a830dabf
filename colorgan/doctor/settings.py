"""The settings of the doctor, parsed before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

# Small enough to pack the sample in seconds, large enough for every network.
IMAGE_SIZE = 64  # of the packed sample that the checks read


class DoctorSettings(BaseModel):
    """What to examine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(Path(), description="folder for doctor.json; its disk is examined")
    device: str = Field("auto", pattern="^(auto|cpu)$", description="auto: a GPU if there is one")
    width: int = Field(
        0, ge=0, description="network width of the benchmark; 0: 64 on a GPU, else 16"
    )
    seconds: float = Field(4.0, gt=0, description="seconds of measuring per setting")
