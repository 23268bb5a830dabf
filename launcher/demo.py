"""Write a page that colors photos in the browser with a generator; it needs no network.

The folder can be opened from the disk or put on any web server.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError


class DemoSettings(BaseModel):
    """What to show."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Path = Field(description="generator folder, from launcher/consolidate.py")
    out: Path = Field(description="folder of the page; an older page in it is replaced")
    runtime: Path | None = Field(
        None,
        description="onnxruntime-web's package as a file; unset: fetched from npm (33 MB), or from "
        "the registry that the variable npm_config_registry names",
    )


def main(argv: list[str]) -> int:
    """Write the page; return the exit status."""
    settings = parse(
        DemoSettings,
        argv,
        command=command_text("demo"),
        description=__doc__ or "",
        next_line="python -m http.server --directory OUT",
        examples=(f"{command_text('demo')} --generator runs/pretrain/generator --out demo",),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.demo.page import write_demo

    print(write_demo(settings.generator, settings.out, settings.runtime, print))
    print(f"Next: open {settings.out / 'index.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
