"""Findings of the doctor: their table on the screen, and doctor.json on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from colorgan.files import replacing
from colorgan.training.work import DOCTOR_RECORD

Verdict = Literal["fine", "slow", "broken", "not checked"]
LINE_WIDTH = 100
NAME_WIDTH = 36  # findings are printed as they come, in one column


class Finding(BaseModel):
    """One check of the machine.

    Attributes:
        name: What was checked.
        verdict: "slow" costs time, "broken" makes commands fail or give wrong numbers.
        detail: What was found, with figures and units.
        advice: What to do about it; empty if fine.
        figures: The measured numbers by name, for programs.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""
    figures: dict[str, float] = {}


class Examination(BaseModel):
    """Everything that the doctor found, and the recipe keys it suggests.

    Attributes:
        gflop_per_s: What the training step reached, by precision and memory format
            (`training.work.form_text`): the plans of dry runs estimate times from it.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    versions: dict[str, str]
    findings: tuple[Finding, ...]
    suggested: dict[str, Any] = {}
    gflop_per_s: dict[str, float] = {}
    seconds: float = 0.0

    @property
    def broken(self) -> bool:
        """Whether any check failed."""
        return any(finding.verdict == "broken" for finding in self.findings)

    def write(self, folder: Path) -> Path:
        """Write doctor.json into a folder, whole or not at all; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DOCTOR_RECORD
        with replacing(path) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n")
        return path


def table(findings: tuple[Finding, ...]) -> str:
    """Return a text table, one row per finding, its advice on a line below."""
    lines = []
    for finding in findings:
        # Fixed columns: findings are printed one by one, before the longest is known.
        lines += _wrapped(f"{finding.name:{NAME_WIDTH}} {finding.verdict:12}", finding.detail)
        if finding.advice:
            lines += _wrapped(f"{'':{NAME_WIDTH}} {'do this:':12}", finding.advice)
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    """Return `text` behind `head`, wrapped to LINE_WIDTH with the following lines indented."""
    words = text.split()
    lines = [head]
    for word in words:
        if len(lines[-1]) + len(word) > LINE_WIDTH and lines[-1].strip():
            lines.append(" " * len(head))
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
