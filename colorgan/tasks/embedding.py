"""Features of a user's photos, in parts that ranks share: arrays to search, cluster or train on.

    embeddings.json              what the features are of; `rows` once all parts are there
    part-00000.npy, .json        rows of float32 and their keys; or part-00000.parquet with both

A part is the same whichever rank makes it, and one that is there is not made again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.config.progress import images_shown
from colorgan.data import PictureError, ShardError
from colorgan.distributed.ranks import Ranks, cores_a_rank
from colorgan.errors import TrainingError, UsageError
from colorgan.files import LOCK, owned_folder, read_json, replacing, write_json
from colorgan.models.framing import framed_luminance
from colorgan.models.model_config import ModelConfig, weights_digest
from colorgan.models.model_folder import load_model
from colorgan.models.modes import evaluating, set_inference
from colorgan.models.unet import FeaturePyramid, encoder_of
from colorgan.probes.features import grid_side
from colorgan.tasks.photo_sources import PhotoSource, open_sources
from shards.extras import install_command

ABOUT = "embeddings.json"
# Failures that the message names.
MAX_NAMED = 20

Pool = Literal["mean", "grid", "none"]
Format = Literal["npy", "parquet"]


@dataclass(frozen=True)
class Embedding:
    """What is computed and how it is written.

    Attributes:
        out: Folder for the parts.
        level: Of the encoder, from 1, the finest; 0 for the deepest.
        pool: "mean" over the image, "grid" for about 9,000 numbers as in the probes, "none" for the
            whole map.
        output: Format of the parts.
        batch_size: Images in a forward pass.
        part_images: Images in a part.
        max_pixels: Photos with more pixels are refused.
        overwrite: Begin afresh in a folder that holds other features.
    """

    out: Path
    level: int
    pool: Pool
    output: Format
    batch_size: int
    part_images: int
    max_pixels: int
    overwrite: bool = False


def embed_photos(model: Path, photos: Sequence[Path], embedding: Embedding, ranks: Ranks) -> None:
    """Write the features of every photo that can be read. Called on all ranks.

    Raises:
        UsageError: The folder holds something else, the encoder has no such level, or some photos
            could not be read (the others are written).
        ModelFolderError: `model` is not a model folder.
        TrainingError: A feature is NaN or infinite.
    """
    ranks.on_all_ranks(lambda: check_format(embedding.output))
    embedder = ranks.on_all_ranks(lambda: Embedder.load(model, embedding))
    embedder.encoder.to(ranks.device)

    with ExitStack() as stack:
        tell = print if ranks.main else (lambda text: None)
        opened = open_sources(photos, embedding.out, embedding.max_pixels, tell)
        sources = ranks.on_all_ranks(lambda: stack.enter_context(opened))
        about = embedder.about(model, sources)

        def begin() -> None:
            if ranks.main:
                stack.enter_context(owned_folder(embedding.out))
                _begin(embedding, about)

        ranks.on_all_ranks(begin)

        _write_parts(embedder, sources, ranks)
        if ranks.main:
            _finish(embedding, about, len(sources))


@dataclass(frozen=True)
class Embedder:
    """An encoder, one of its levels, and how that is pooled."""

    encoder: FeaturePyramid
    config: ModelConfig
    embedding: Embedding

    @classmethod
    def load(cls, model: Path, embedding: Embedding) -> Embedder:
        """Load the encoder of any model folder, on the CPU.

        Raises:
            UsageError: It has no such level.
            ModelFolderError: It is not a model folder.
        """
        network, config = load_model(model)
        encoder = encoder_of(network)
        set_inference(encoder, "running")
        if embedding.level > len(encoder.channels):
            raise UsageError(
                f"--level {embedding.level}: the encoder of {model} has the levels 1 to "
                f"{len(encoder.channels)}"
            )
        return cls(encoder.eval(), config, embedding)

    def about(self, model: Path, sources: Sequence[PhotoSource]) -> dict[str, Any]:
        """Return what the features are of; features of something else are not added to."""
        names = "\n".join(source.name for source in sources)
        return {
            "weights_sha256": weights_digest(model),
            "level": self.embedding.level or len(self.encoder.channels),
            "pool": self.embedding.pool,
            "format": self.embedding.output,
            "part_images": self.embedding.part_images,
            "batch_size": self.embedding.batch_size,
            "photos_sha256": hashlib.sha256(os.fsencode(names)).hexdigest(),
        }

    def square(self, source: PhotoSource) -> Tensor:
        """Return a photo as the encoder sees it, 1 x 1 x S x S on the CPU.

        Raises:
            PictureError: It cannot be read.
            ShardError: It cannot be read from its set.
        """
        square, _ = framed_luminance(source.read(), self.config)
        return square

    def features(self, squares: Sequence[Tensor]) -> Tensor:
        """Return the pooled level of some photos, float32 on the CPU, a row per photo."""
        device = next(self.encoder.parameters()).device
        with evaluating(self.encoder), torch.inference_mode():
            level_BCHW = self.encoder(torch.cat(list(squares)).to(device))[self.embedding.level - 1]
        return self._pooled(level_BCHW.float()).cpu()

    def _pooled(self, level_BCHW: Tensor) -> Tensor:
        match self.embedding.pool:
            case "mean":
                return level_BCHW.mean(dim=(2, 3))
            case "grid":
                grid = grid_side(level_BCHW.shape[1], level_BCHW.shape[2])
                return F.adaptive_avg_pool2d(level_BCHW, grid).flatten(1)
            case "none":
                return level_BCHW


@dataclass(frozen=True)
class _Part:
    """The rows of a part, their keys, and what is wrong with the photos that have none."""

    rows: Tensor
    keys: list[str]
    failures: list[str]


def _begin(embedding: Embedding, about: Mapping[str, Any]) -> None:
    """Write what the features are of, or find the same there. Rank 0 only.

    Raises:
        UsageError: The folder holds something else.
    """
    path = embedding.out / ABOUT
    found = read_json(path)
    if all(found.get(key) == value for key, value in about.items()):
        return

    others = [each for each in embedding.out.iterdir() if each.name != LOCK]
    if others and not embedding.overwrite:
        problem = "holds features of other photos or settings" if found else "holds other files"
        raise UsageError(
            f"{embedding.out} {problem}: choose another --out, or add --overwrite true"
        )
    for part in embedding.out.glob("part-*"):
        part.unlink()
    write_json(path, about)


def _write_parts(embedder: Embedder, sources: Sequence[PhotoSource], ranks: Ranks) -> None:
    """Make this rank's parts. Called on all ranks.

    Raises:
        UsageError: Some photos could not be read.
    """
    failures: list[str] = []
    parts = _make_parts(embedder, sources, ranks, failures)
    num_done = 0
    with images_shown(len(sources)) as show:
        # The ranks meet after every batch: one that has more to do than the others is not silent,
        # however long its part takes.
        while True:
            own = ranks.on_all_ranks(lambda: next(parts, None))
            batches = [each for each in ranks.gather(own) if each is not None]
            if not batches:
                break
            num_done += sum(batches)
            if ranks.main:
                show(num_done, 0)

    every = [failure for each in ranks.gather(failures) for failure in each]
    if every:
        named = "\n  ".join(every[:MAX_NAMED])
        raise UsageError(
            f"{embedder.embedding.out}: {len(every)} of {len(sources)} photos could not be read "
            f"and have no row:\n  {named}"
        )


def _make_parts(
    embedder: Embedder, sources: Sequence[PhotoSource], ranks: Ranks, failures: list[str]
) -> Iterator[int]:
    """Make this rank's parts; yield how many photos are done after each batch.

    What is wrong with photos that have no row is added to `failures`.
    """
    size = embedder.embedding.part_images
    num_parts = -(-len(sources) // size)
    for number in range(ranks.rank, num_parts, ranks.world_size):
        chosen = sources[number * size : (number + 1) * size]
        failures.extend((yield from _make_part(embedder, number, chosen)))


def _make_part(
    embedder: Embedder, number: int, sources: Sequence[PhotoSource]
) -> Generator[int, None, list[str]]:
    """Write a part if it is not there, a batch a step.

    Return what is wrong with the photos that have no row.
    """
    embedding = embedder.embedding
    path = embedding.out / f"part-{number:05d}.{embedding.output}"
    keys_path = path.with_suffix(".json")
    if path.is_file() and keys_path.is_file():
        found = read_json(keys_path)
        # Files that could not be read may have been mended meanwhile, others replaced.
        is_current = found.get("versions") == [source.version for source in sources]
        if is_current and not found.get("failures"):
            yield len(sources)
            return []

    part = yield from _compute(embedder, sources)
    keys_path.unlink(missing_ok=True)
    WRITERS[embedding.output](path, part)
    # The keys come last: a part without them is made again.
    versions = [source.version for source in sources]
    write_json(keys_path, {"keys": part.keys, "failures": part.failures, "versions": versions})
    # Or the last batch, the writing and the next part's first batch would be one step.
    yield 0
    return part.failures


def _compute(embedder: Embedder, sources: Sequence[PhotoSource]) -> Generator[int, None, _Part]:
    rows: list[Tensor] = []
    keys: list[str] = []
    failures: list[str] = []
    size = embedder.embedding.batch_size
    squares: list[Tensor] = []
    for number, (source, square) in enumerate(_squares(embedder, sources)):
        # Between two batches, also where no photo of one could be read.
        if number and number % size == 0:
            yield size
        if isinstance(square, Exception):
            failures.append(f"{source.name}: {square}")
            continue

        keys.append(source.name)
        squares.append(square)
        if len(squares) == size:
            rows.append(embedder.features(squares))
            squares = []

    yield len(sources) - (len(sources) - 1) // size * size
    if squares:
        rows.append(embedder.features(squares))
    part = _Part(torch.cat(rows) if rows else torch.empty(0, 0), keys, failures)
    if not part.rows.isfinite().all():
        raise TrainingError(
            "the encoder's features are NaN or infinite: its weights are damaged, or diverged"
        )
    return part


def _squares(
    embedder: Embedder, sources: Sequence[PhotoSource]
) -> Iterator[tuple[PhotoSource, Tensor | Exception]]:
    """Yield each photo as the encoder sees it, or why it cannot be read; decoded in threads."""

    def read(source: PhotoSource) -> Tensor | Exception:
        try:
            return embedder.square(source)
        except (PictureError, ShardError, OSError) as error:
            return error

    # A few at a time: the squares of a whole part would wait in memory.
    ahead = 4 * embedder.embedding.batch_size
    with ThreadPoolExecutor(cores_a_rank()) as pool:
        for start in range(0, len(sources), ahead):
            chosen = sources[start : start + ahead]
            yield from zip(chosen, pool.map(read, chosen), strict=True)


def check_format(output: Format) -> None:
    """Refuse a format whose library is missing.

    Raises:
        UsageError: It is Parquet, and pyarrow is not installed.
    """
    if output != "parquet":
        return
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(f"--format parquet needs pyarrow: {install_command('parquet')}") from None


def _write_npy(path: Path, part: _Part) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, part.rows.numpy(), allow_pickle=False)


def _write_parquet(path: Path, part: _Part) -> None:
    """Write columns `key` and `features`, a flat list; the shape of a row is in the metadata."""
    arrow = importlib.import_module("pyarrow")
    flat = part.rows.flatten(1) if len(part.rows) else part.rows
    values = arrow.FixedSizeListArray.from_arrays(
        arrow.array(flat.numpy().ravel()), max(1, flat.shape[1])
    )
    shape = json.dumps(list(part.rows.shape[1:]))
    # A file's name may be no text, which a column of text is.
    keys = [os.fsencode(key).decode(errors="backslashreplace") for key in part.keys]
    table = arrow.table({"key": arrow.array(keys, arrow.string()), "features": values})
    table = table.replace_schema_metadata({"shape": shape})
    with replacing(path) as partial:
        importlib.import_module("pyarrow.parquet").write_table(table, partial)


WRITERS: dict[Format, Callable[[Path, _Part], None]] = {
    "npy": _write_npy,
    "parquet": _write_parquet,
}


def _finish(embedding: Embedding, about: Mapping[str, Any], num_photos: int) -> None:
    """Add the number of rows to what the features are of. Rank 0 only."""
    write_json(embedding.out / ABOUT, {**about, "rows": num_photos})
    print(f"{embedding.out}: features of {num_photos} photos")
