"""Upload a model to the Hugging Face hub, where `from_pretrained` loads it by name.

Takes a folder that consolidation, fine-tuning or import_encoder has written: its weights, config,
card and pictures, nothing else. The card gets the scores that `evaluate --out` has written beside
the folder. The token is that of `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError


class PushSettings(BaseModel):
    """What to upload, and under which name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="folder of the model")
    repo: str = Field(description="USER/NAME on the hub; made if it does not exist")
    public: bool = Field(False, description="show a new model to everyone")
    message: str = Field("A colorgan model", min_length=1, description="of the commit")


def main(argv: list[str]) -> int:
    """Check the folder and upload it; return the exit status."""
    settings = parse(
        PushSettings,
        argv,
        command=command_text("push"),
        description=__doc__ or "",
        next_line="python -c \"import colorgan; colorgan.Encoder.from_pretrained('USER/NAME')\"",
        examples=(f"{command_text('push')} --model runs/pretrain/generator --repo me/landscapes",),
    )

    # Torch and the hub's library are imported after the settings have been checked.
    from colorgan.models.hub import push_model
    from colorgan.tasks.model_card import renew_evaluations

    # Before the upload: whoever finds the weights finds their scores too.
    for folder in renew_evaluations(settings.model):
        print(f"card: with the scores in {folder}")
    address = push_model(
        settings.model,
        settings.repo,
        private=not settings.public,
        title=settings.message,
    )
    print(f"{address}: uploaded{'' if settings.public else ', private if it is new'}")
    print(f"Next: colorgan.Encoder.from_pretrained({settings.repo!r}) in Python, on any machine")
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError)
