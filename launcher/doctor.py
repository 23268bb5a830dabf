"""Examine this machine: what is fine, what is slow and why, what is broken and what to do.

Checks driver, architecture, bf16, decoding, all-reduce, DeepSpeed, shared memory, open files, disk
and cores; lets one rank fail, stops and resumes a run, and measures loader and training step. Takes
under five minutes, with or without a GPU. Ends with status 0 if nothing is broken, else 1.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.doctor.settings import IMAGE_SIZE, DoctorSettings
from colorgan.errors import ColorganError, UsageError

HERE = Path(__file__).resolve().parent


def main(argv: list[str]) -> int:
    """Examine; return 1 if anything is broken."""
    settings = parse(
        DoctorSettings,
        argv,
        command=command_text("doctor"),
        description=__doc__ or "",
        next_line=command_text("pretrain"),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.doctor.examine import examine

    # The sample is drawn anew: the doctor needs no data, and leaves none.
    with tempfile.TemporaryDirectory() as folder:
        data = packed_sample(Path(folder))
        return int(examine(settings, data).broken)


def packed_sample(folder: Path) -> Path:
    """Draw and pack the built-in sample at IMAGE_SIZE; return the packed folder."""
    from colorgan.tasks.sample_data import pack_sample

    out = folder / "packed"
    policy = f"squash:{IMAGE_SIZE}"
    if not pack_sample(HERE / "pack.py", folder / "raw", "val", out, policy):
        raise UsageError("the built-in sample could not be packed: see the message above")
    return out


if __name__ == "__main__":
    run_command(main, ColorganError)
