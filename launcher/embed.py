"""Write an encoder's features of photos, folders or packed sets, as npy or Parquet with keys.

Several ranks share the photos; the files are the same on any number of them. Rerunning the command
resumes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.errors import ColorganError
from shards.errors import ShardError
from shards.images.policy import MAX_PIXELS, MAX_PIXELS_LIMIT


class EmbedSettings(BaseModel):
    """What to compute, of which photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="model folder of any kind: RUN/generator, RUN/model")
    out: Path = Field(description="folder for the features; made if it does not exist")
    photos: tuple[Path, ...] = Field(
        min_length=1, description="photos of any size, folders of them, or packed folders"
    )
    level: Annotated[int, Field(ge=0)] = Field(
        0, description="level of the encoder, 1 the finest; 0: the deepest"
    )
    pool: Literal["mean", "grid", "none"] = Field(
        "mean",
        description="mean over the image; grid: about 9,000 numbers, as in probes; none: the map",
    )
    format: Literal["npy", "parquet"] = Field("npy", description="of the parts")
    batch_size: Annotated[int, Field(gt=0)] = Field(32, description="images a forward pass")
    part_images: Annotated[int, Field(gt=0)] = Field(1024, description="images a file")
    overwrite: bool = Field(False, description="start afresh in a folder with other features")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: a GPU where PyTorch finds one"
    )
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, le=MAX_PIXELS_LIMIT, description="photos with more pixels are refused"
    )
    timeout_s: Annotated[int, Field(gt=0)] = Field(
        600, description="seconds after which a silent rank ends the run"
    )


def main(argv: list[str]) -> int:
    """Embed every photo that can be read; return the exit status."""
    settings = parse(
        EmbedSettings,
        argv,
        command=command_text("embed"),
        description=__doc__ or "",
        next_line="load part-*.npy with numpy; keys are in part-*.json",
        positional="photos",
        examples=(
            f"{command_text('embed')} --model runs/pretrain/generator --out features photos/",
        ),
    )

    # Torch is imported after the settings have been checked.
    from colorgan.distributed.ranks import joined_ranks
    from colorgan.tasks.embedding import Embedding, embed_photos

    embedding = Embedding(
        out=settings.out,
        level=settings.level,
        pool=settings.pool,
        output=settings.format,
        batch_size=settings.batch_size,
        part_images=settings.part_images,
        max_pixels=settings.max_pixels,
        overwrite=settings.overwrite,
    )
    # The ranks share the photos; without a launcher there is one.
    with joined_ranks(timeout_s=settings.timeout_s, device=settings.device) as ranks:
        embed_photos(settings.model, settings.photos, embedding, ranks)
    return 0


if __name__ == "__main__":
    run_command(main, ColorganError, ShardError)
