"""Put runs side by side on one page.

Takes run folders of pretraining and fine-tuning, folders of studies, and --out folders of
evaluations and probes. Writes report.html (one file, no network needed), report.md and the pictures
as PNG.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError


class ReportSettings(BaseModel):
    """What to report on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(
        description="folder for report.html, report.md and the PNGs; made if it is not there"
    )
    runs: tuple[Path, ...] = Field(
        min_length=1, description="folders of runs, studies, evaluations and probes"
    )


def main(argv: list[str]) -> int:
    """Write the report; return the exit status."""
    settings = parse(
        ReportSettings,
        argv,
        command=command_text("report"),
        description=__doc__ or "",
        next_line=f"{command_text('colorize')} --generator DIR --out DIR PHOTO...",
        positional="runs",
    )

    # Matplotlib and torch are imported after the settings have been checked.
    from colorgan.report.page import write_report

    page = write_report(settings.runs, settings.out)
    print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB, {len(settings.runs)} folders")
    print(f"Next: open {page} in a browser")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
