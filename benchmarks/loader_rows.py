"""One loader of the comparison in its own process: benchmarks/loader.py drives it over stdin.

    python benchmarks/loader_rows.py ROW WORK THREADS
    then lines "S": measure for S seconds, print a JSON line

Every row gives batches of 32 normalised Lab pictures of 256x256, float32, shape (32, 3, 256, 256),
on the CPU, in a shuffled order without end (`decode` gives bytes: it is the limit). Each row is
written as its users would, with their faster options on: no Python worker restarts between epochs,
OpenCV's own threads off inside workers. Imports stand in the functions: our packages and the peers
live in different environments.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
SIZE = 256
WARM_UP = 6  # batches: more than any of these loaders keeps ready


def main() -> None:
    """Measure the row that the command line names, once per line of stdin."""
    name, work, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    kind, row = name.split("/")
    batches = ROWS[row](work / kind, kind, threads)
    for _ in range(WARM_UP):
        next(batches)

    print(json.dumps({"ready": name}), flush=True)

    for line in sys.stdin:
        for _ in range(WARM_UP):  # what was made while others were measured
            next(batches)
        begin, cpu, number = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - begin < float(line):
            number += len(next(batches))
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
        print(
            json.dumps({"images_per_s": number / seconds, "cpu_ms": 1000 * cpu / number}),
            flush=True,
        )


def cpu_seconds() -> float:
    """Return the CPU time that this process and its workers have used so far."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])

    total, mine = 0, {os.getpid()}
    # Children of children: loaders start workers, which start helpers.
    while mine:
        total += sum(used.get(pid, 0) for pid in mine)
        mine = {pid for pid, parent in parents.items() if parent in mine}

    return total / os.sysconf("SC_CLK_TCK")


def colorgan(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """Load with this project's loader."""
    return _our_batches(folder / "shards", threads)


def indexed(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """Load shards written by the webdataset library with this project's loader, in place."""
    return _our_batches(folder / "indexed", threads)


def _our_batches(folder: Path, threads: int) -> Iterator[Any]:
    from shards.loading.loader import Loader
    from shards.loading.shard_set import open_shards

    loader = Loader(
        open_shards([folder]),
        image_size=SIZE,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        num_threads=threads,
        flip=True,
    )
    for micro_batches in loader.train_batches(0):
        yield micro_batches[0].lab_B3HW


def decode(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """DALI's decoder alone, bytes in memory: no reading, no resize, no Lab, no copy."""
    from nvidia.dali import Pipeline, fn, types

    data = [np.frombuffer(path.read_bytes(), np.uint8) for path in _files(folder)]
    # In memory from here on: reading is left out, as this row is the limit of decoding.
    position = 0

    def source() -> list[np.ndarray]:
        nonlocal position
        position += BATCH
        return [data[(position + i) % len(data)] for i in range(BATCH)]

    pipeline = Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2
    )
    with pipeline:
        encoded = fn.external_source(source=source, dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(encoded, output_type=types.RGB))
    pipeline.build()
    while True:
        yield pipeline.run()[0]


def dali(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """DALI's own webdataset reader and operators, as they come."""
    import torch
    from nvidia.dali import Pipeline, fn, types

    from shards.decoding.dali import lab_operators
    from shards.decoding.decoder import as_tensor

    pipeline = Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2, seed=1
    )
    tars = sorted((folder / "shards").glob("*.tar"))
    with pipeline:
        encoded = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["jpg"],
            random_shuffle=True,
            initial_fill=256,
        )
        rgb = fn.decoders.image(encoded, output_type=types.RGB)
        if kind == "original":
            rgb = fn.resize(
                rgb,
                size=[SIZE, SIZE],
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        pipeline.set_outputs(lab_operators(rgb, 128.0))
    pipeline.build()
    while True:
        lab_B3HW: torch.Tensor = as_tensor(pipeline.run()[0]).clone()
        yield lab_B3HW


def paper(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """Load as the paper does: PIL, bilinear resize, skimage, a torch DataLoader."""
    from PIL import Image
    from skimage.color import rgb2lab

    # As the paper's code does it, step by step.
    def load(path: Path) -> np.ndarray:
        image = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        lab = rgb2lab(np.asarray(image)).astype(np.float32).transpose(2, 0, 1)
        return np.concatenate([lab[:1] / 50.0 - 1.0, lab[1:] / 128.0])

    return _data_loader(_files(folder), load, threads)


def opencv(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """OpenCV decode, INTER_AREA and float Lab, a torch DataLoader."""
    return _data_loader(
        _files(folder),
        lambda path: _opencv_lab(path.read_bytes()),
        threads,
    )


def webdataset(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """Load our shards with the webdataset library, OpenCV for pixels, batches in the workers."""
    import webdataset as wds

    urls = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    data = (
        wds.WebDataset(
            urls,
            resampled=True,
            shardshuffle=False,
            empty_check=False,
        )
        .shuffle(256)
        .to_tuple("jpg")
        .map_tuple(_opencv_lab)
        .batched(BATCH)
    )
    for (batch,) in wds.WebLoader(data, batch_size=None, num_workers=threads):
        yield batch


def streaming(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """MosaicML streaming from MDS shards on this disk, OpenCV for pixels."""
    import shutil

    _without_torchvision()
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    mds = folder / "mds"
    shutil.rmtree(mds, ignore_errors=True)
    with MDSWriter(out=str(mds), columns={"jpg": "bytes"}) as writer:
        for path in _files(folder):
            writer.write({"jpg": path.read_bytes()})

    class Lab(StreamingDataset):
        def __getitem__(self, index: int) -> np.ndarray:
            return _opencv_lab(super().__getitem__(index)["jpg"])

    data = Lab(
        local=str(mds),
        shuffle=True,
        batch_size=BATCH,
        epoch_size=200_000,
        shuffle_seed=1,
    )
    yield from DataLoader(data, batch_size=BATCH, num_workers=threads)


def ffcv(folder: Path, kind: str, threads: int) -> Iterator[Any]:
    """Load by FFCV: its JPEG field, its decoder, our Lab formula by OpenCV on the batch."""
    import cv2
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Pictures:
        def __init__(self, paths: list[Path]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[Any]:
            return (Image.open(self.paths[index]).convert("RGB"),)

    beton = folder / "pictures.beton"
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95)}
    DatasetWriter(str(beton), fields, num_workers=threads).from_indexed_dataset(
        Pictures(_files(folder))
    )
    pipelines = {"image": [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1)]}
    loader = Loader(
        str(beton), BATCH, num_workers=threads, order=OrderOption.RANDOM, pipelines=pipelines
    )
    while True:
        for (rgb,) in loader:
            lab = [
                cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2Lab)
                for image in np.asarray(rgb)
            ]
            yield np.ascontiguousarray(
                np.stack(lab).transpose(
                    0,
                    3,
                    1,
                    2,
                )
            )


def _without_torchvision() -> None:
    """Provide two names of torchvision that `streaming` imports, where its wheel does not load."""
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "files").glob("*.jpg"))


def _opencv_lab(data: bytes) -> np.ndarray:
    import cv2

    # Its own threads would compete with the workers.
    cv2.setNumThreads(0)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr.shape[:2] != (SIZE, SIZE):
        bgr = cv2.resize(bgr, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(bgr.astype(np.float32) * (1.0 / 255.0), cv2.COLOR_BGR2Lab)
    planes = np.empty((3, SIZE, SIZE), np.float32)
    np.multiply(lab[..., 0], 1.0 / 50.0, out=planes[0])
    planes[0] -= 1.0
    np.multiply(lab[..., 1], 1.0 / 128.0, out=planes[1])
    np.multiply(lab[..., 2], 1.0 / 128.0, out=planes[2])
    return planes


class _Endless:
    """A data set without epochs, so that no DataLoader starts its workers anew."""

    def __init__(self, paths: list[Path], load: Callable[[Path], np.ndarray]) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> np.ndarray:
        # A large prime as stride: every image comes, in no order that a disk likes.
        return self.load(self.paths[index * 7919 % len(self.paths)])


def _data_loader(
    paths: list[Path], load: Callable[[Path], np.ndarray], threads: int
) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader

    # The workers are the parallelism here.
    torch.set_num_threads(1)
    # fork (set explicitly: it is no longer the default everywhere), so that `load` need not be
    # picklable.
    return iter(
        DataLoader(
            _Endless(paths, load),
            batch_size=BATCH,
            num_workers=threads,
            multiprocessing_context="fork",
        )
    )


ROWS = {
    "decode": decode,
    "colorgan": colorgan,
    "indexed": indexed,
    "paper": paper,
    "opencv": opencv,
    "webdataset": webdataset,
    "streaming": streaming,
    "dali": dali,
    "ffcv": ffcv,
}

if __name__ == "__main__":
    main()
