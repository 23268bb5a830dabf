"""The built-in sample: drawn scenes, written as users have real sets on disk, opened by the same adapters.

    <root>/sample.json                                what was asked for, so that another request is noticed
    <root>/coco/{train2017,val2017,annotations}       COCO part: splits `train` and `val`
    <root>/VOCdevkit/VOC2012/...                      VOC part with masks: splits `voc-train` and `voc-val`

It lets a machine without any data run every verb in minutes. It is no benchmark: a score on it says that the
code works, nothing about photographs. 2,100 scenes of 128 pixels take about 7 s and 25 MB.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.corpora.coco import open_coco
from datasets.corpora.palette import voc_palette
from datasets.corpora.voc import open_voc
from datasets.errors import CorpusError
from datasets.sample.scenes import NAMES, Instance, Scene, draw_scene
from shards.records import VOID, Corpus

VERSION = 1  # of the drawing: raise it whenever the same seed gives other bytes
SPLITS = {"train": "train", "val": "val", "voc-train": "2012-seg-train", "voc-val": "2012-seg-val"}
STAMP = "sample.json"

logger = logging.getLogger("datasets")


@dataclasses.dataclass(frozen=True, slots=True)
class SampleSpec:
    """What to draw: scenes a split, the seed, and the longer side in pixels."""

    num_train: int = 1200
    num_val: int = 200
    num_voc_train: int = 500
    num_voc_val: int = 200
    seed: int = 0
    size: int = 128

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        for name in ("num_train", "num_val", "num_voc_train", "num_voc_val"):
            if not 1 <= getattr(self, name) < 1_000_000:
                raise CorpusError(
                    f"sample: {name} is {getattr(self, name)}, it must be 1 to 999,999."
                )
        if not 32 <= self.size <= 1024 or self.seed < 0:
            raise CorpusError(
                f"sample: size {self.size} or seed {self.seed} is out of range; "
                "size is 32 to 1024 pixels, seed 0 or more."
            )


def open_sample(root: Path, split: str, spec: SampleSpec | None = None) -> Corpus:
    """Opens a split of the sample; draws it first where it is not there yet.

    Args:
        root: the sample's folder; made where it is missing.
        split: `train` or `val` (COCO part), `voc-train` or `voc-val` (VOC part, with masks).
        spec: what is wanted. A sample of another spec in the folder is drawn anew. None takes the one that
            is there, or the default.

    Raises:
        CorpusError: an unknown split, a folder that holds something else, or one that cannot be written.
    """
    if split not in SPLITS:
        raise CorpusError(f"{split!r} is no split of the sample: it has {', '.join(SPLITS)}.")
    present = _read_stamp(root)
    wanted = spec or (present[1] if present else SampleSpec())
    if present != (VERSION, wanted):
        _replace(root, wanted, present)
    if split.startswith("voc-"):
        corpus = open_voc(root / "VOCdevkit", SPLITS[split])
    else:
        corpus = open_coco(root / "coco", SPLITS[split])
    return dataclasses.replace(corpus, name="sample", split=split)


def write_sample(
    root: Path,
    *,
    num_train: int = 1200,
    num_val: int = 200,
    num_voc_train: int = 500,
    num_voc_val: int = 200,
    seed: int = 0,
    size: int = 128,
) -> None:
    """Draws the sample into a folder that is new, empty or holds a sample already; nothing is left half done.

    The same arguments give the same bytes.

    Args:
        root: the folder to make.
        num_train: scenes of the COCO part for training.
        num_val: scenes of the COCO part held out.
        num_voc_train: scenes of the VOC part for training.
        num_voc_val: scenes of the VOC part held out.
        seed: names the drawing; scenes differ between all splits.
        size: the longer side, pixels.

    Raises:
        CorpusError: a number out of range, a folder that holds something else, or one that cannot be written.
    """
    spec = SampleSpec(num_train, num_val, num_voc_train, num_voc_val, seed, size)
    _replace(root, spec, _read_stamp(root))


def _read_stamp(root: Path) -> tuple[int, SampleSpec] | None:
    """Returns the version and spec of the sample in a folder, None where the folder is missing or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        stamp = json.loads((root / STAMP).read_text(encoding="utf-8"))
        return int(stamp.pop("version")), SampleSpec(**stamp)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorpusError(
            f"{root}: is not empty and holds no built-in sample; give a new or an empty folder."
        ) from error


def _replace(root: Path, spec: SampleSpec, before: tuple[int, SampleSpec] | None) -> None:
    """Draws into a folder beside the root, then swaps it in; `before` is what the root held."""
    root = root.absolute()
    fresh, old = (root.with_name(f".{root.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _write(fresh, spec)
        now = _read_stamp(root)
        if now != before and now == (VERSION, spec):
            return  # another process was first with the same sample and may be reading it
        if root.exists():
            root.rename(old)
        fresh.rename(root)
    except OSError as error:
        raise CorpusError(
            f"{root}: the sample cannot be written here ({error.strerror or error})."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, spec: SampleSpec) -> None:
    """Draws both parts; the stamp comes last."""
    numbers = dataclasses.asdict(spec)
    num_scenes = sum(numbers[name] for name in numbers if name.startswith("num_"))
    logger.info(
        "drawing the built-in sample: %d scenes of %d pixels, no benchmark", num_scenes, spec.size
    )
    shutil.rmtree(root, ignore_errors=True)
    for part, (split, count) in enumerate((("train", spec.num_train), ("val", spec.num_val))):
        _write_coco(root / "coco", f"{split}2017", count, (spec.seed, part), spec.size)
    year = root / "VOCdevkit" / "VOC2012"
    for part, (split, count) in enumerate(
        (("train", spec.num_voc_train), ("val", spec.num_voc_val)), start=2
    ):
        _write_voc(year, split, count, (spec.seed, part), spec.size)
    _write_voc_trainval(year)
    (root / STAMP).write_text(json.dumps({"version": VERSION, **numbers}) + "\n", encoding="utf-8")


def _scenes(count: int, seed: tuple[int, int], size: int) -> Iterator[tuple[int, Scene]]:
    """Yields numbers from 1 and their scenes."""
    for index in range(count):
        yield index + 1, draw_scene((*seed, index), size)


def _save_photo(scene: Scene, path: Path) -> None:
    """Writes the picture with its full chroma: colour is what is to be learnt."""
    Image.fromarray(scene.rgb).save(path, quality=95, subsampling=0)


def _boxes(scene: Scene) -> Iterator[tuple[Instance, NDArray[np.bool_], tuple[int, int, int, int]]]:
    """Yields each object, its visible pixels (H x W) and their box x0, y0, x1, y1, half-open."""
    for number, instance in enumerate(scene.instances, start=1):
        solid = scene.instance_map == number
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        yield (
            instance,
            solid,
            (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        )


def _write_coco(root: Path, split: str, count: int, seed: tuple[int, int], size: int) -> None:
    """Writes pictures and the instances JSON of one split."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in _scenes(count, seed, size):
        height, width = scene.instance_map.shape
        name = f"{number:012d}.jpg"
        _save_photo(scene, root / split / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.extend(_coco_annotations(scene, number, len(annotations) + 1))
    categories = [
        {"id": place + 1, "name": name, "supercategory": "drawn"}
        for place, name in enumerate(NAMES)
    ]
    info = {"description": "colorgan's built-in sample: drawn scenes, no benchmark"}
    data = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(
        json.dumps(data), encoding="utf-8"
    )


def _coco_annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """The objects of a scene as COCO has them, outlines as run lengths."""
    for number, (instance, solid, (x0, y0, x1, y1)) in enumerate(_boxes(scene), start=first_id):
        rle = coco_mask.encode(np.asfortranarray(solid, np.uint8))
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": instance.place + 1,
            "iscrowd": 0,
            "area": int(solid.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": {"size": list(solid.shape), "counts": rle["counts"].decode("ascii")},
        }


def _write_voc(year: Path, split: str, count: int, seed: tuple[int, int], size: int) -> None:
    """Writes pictures, XML, masks and lists of one split."""
    for folder in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (year / folder).mkdir(parents=True, exist_ok=True)
    names = []
    for number, scene in _scenes(count, seed, size):
        name = f"{2000 + seed[1]}_{number:06d}"
        names.append(name)
        _save_photo(scene, year / "JPEGImages" / f"{name}.jpg")
        (year / "Annotations" / f"{name}.xml").write_text(_voc_xml(scene, name), encoding="utf-8")
        _voc_mask(scene).save(year / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (year / "ImageSets" / kind / f"{split}.txt").write_text(
            "\n".join(names) + "\n", encoding="utf-8"
        )


def _write_voc_trainval(year: Path) -> None:
    for kind in ("Main", "Segmentation"):
        folder = year / "ImageSets" / kind
        both = "".join(
            (folder / f"{split}.txt").read_text(encoding="utf-8") for split in ("train", "val")
        )
        (folder / "trainval.txt").write_text(both, encoding="utf-8")


def _voc_mask(scene: Scene) -> Image.Image:
    """The mask as VOC has it: class indices under VOC's palette, outlines 255."""
    values = np.array([0, *(instance.place + 1 for instance in scene.instances)], np.uint8)
    plane = np.where(scene.void_map, np.uint8(VOID), values[scene.instance_map])
    mask = Image.fromarray(plane)
    mask.putpalette([channel for color in voc_palette(VOID) for channel in color])
    return mask


def _voc_xml(scene: Scene, name: str) -> str:
    """The objects of a scene as VOC has them: pixels count from 1, the last is included."""
    height, width = scene.instance_map.shape
    objects = "".join(
        f"\t<object><name>{NAMES[instance.place]}</name><pose>Unspecified</pose>"
        f"<truncated>{int(instance.truncated)}</truncated><difficult>{int(instance.difficult)}</difficult>"
        f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        "</object>\n"
        for instance, _, (x0, y0, x1, y1) in _boxes(scene)
    )
    return (
        f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>\n"
        "\t<source><database>colorgan's built-in sample: drawn scenes, no benchmark</database></source>\n"
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )
