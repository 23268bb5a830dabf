"""Write drawn scenes as users have real sets on disk: a COCO folder and a VOC year.

Called by corpus.py, in a folder of its own that takes its place when it is whole.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from datasets.sample.scenes import NAMES, Instance, Scene, draw_scene
from shards.records import VOID

ABOUT = "colorgan's built-in sample: drawn scenes, no benchmark"
VOC_FOLDERS = (
    "JPEGImages",
    "Annotations",
    "SegmentationClass",
    "ImageSets/Main",
    "ImageSets/Segmentation",
)
LIST_KINDS = ("Main", "Segmentation")


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """What to draw: scenes per split, the seed, and the longer side in pixels."""

    num_train: int = 1200
    num_val: int = 200
    num_voc_train: int = 500
    num_voc_val: int = 200
    seed: int = 0
    size: int = 128

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("num_train", "num_val", "num_voc_train", "num_voc_val"):
            # Six digits number the scenes in VOC's names.
            if not 1 <= getattr(self, name) < 1_000_000:
                raise CorpusError(
                    f"sample: {name} is {getattr(self, name)}, it must be 1 to 999,999."
                )
        if not 32 <= self.size <= 1024 or self.seed < 0:
            raise CorpusError(
                f"sample: size {self.size} or seed {self.seed} is out of range; "
                "size is 32 to 1024 pixels, seed 0 or more."
            )

    @property
    def num_scenes(self) -> int:
        """Return the number of scenes in all splits."""
        return self.num_train + self.num_val + self.num_voc_train + self.num_voc_val

    def to_json(self) -> dict[str, int]:
        """Return plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class _Split:
    """One split to draw; `part` keeps its scenes apart from those of the others."""

    name: str
    num_scenes: int
    seed: int
    part: int
    size: int

    def scenes(self) -> Iterator[tuple[int, Scene]]:
        """Yield numbers from 1 and their scenes."""
        for index in range(self.num_scenes):
            yield (
                index + 1,
                draw_scene((self.seed, self.part, index), self.size),
            )


def write_parts(root: Path, spec: SampleSpec) -> None:
    """Draw both parts into a folder."""
    coco, year = root / "coco", root / "VOCdevkit" / "VOC2012"
    _write_coco(coco, _Split("train2017", spec.num_train, spec.seed, 0, spec.size))
    _write_coco(coco, _Split("val2017", spec.num_val, spec.seed, 1, spec.size))
    _write_voc(year, _Split("train", spec.num_voc_train, spec.seed, 2, spec.size))
    _write_voc(year, _Split("val", spec.num_voc_val, spec.seed, 3, spec.size))
    # From the two lists: VOC's trainval is their sum.
    _write_voc_trainval(year)


def _save_photo(scene: Scene, path: Path) -> None:
    """Write the image with its full chroma: color is what is learned."""
    Image.fromarray(scene.rgb).save(path, quality=95, subsampling=0)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One object.

    Attributes:
        instance: the object.
        solid: its visible pixels, H x W.
        x0: left side of their box; the box is half-open.
        y0: upper side.
        x1: right side.
        y1: lower side.
    """

    instance: Instance
    solid: NDArray[np.bool_]
    x0: int
    y0: int
    x1: int
    y1: int


def _drawn_objects(scene: Scene) -> Iterator[_Drawn]:
    for number, instance in enumerate(scene.instances, start=1):
        solid = scene.instance_map == number
        rows = np.flatnonzero(solid.any(axis=1)).tolist()
        columns = np.flatnonzero(solid.any(axis=0)).tolist()

        # The box ends behind the last row and column.
        yield _Drawn(
            instance,
            solid,
            columns[0],
            rows[0],
            columns[-1] + 1,
            rows[-1] + 1,
        )


def _write_coco(root: Path, split: _Split) -> None:
    """Write the images and the instances JSON of one split."""
    (root / split.name).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    for number, scene in split.scenes():
        height, width = scene.instance_map.shape
        # COCO's own names have twelve digits.
        name = f"{number:012d}.jpg"
        _save_photo(scene, root / split.name / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.extend(_coco_annotations(scene, number, len(annotations) + 1))

    categories = [
        {"id": index + 1, "name": name, "supercategory": "drawn"}
        for index, name in enumerate(NAMES)
    ]
    data = {
        "info": {"description": ABOUT},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    path = root / "annotations" / f"instances_{split.name}.json"
    path.write_text(json.dumps(data), encoding="utf-8")


def _coco_annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """Yield the objects of a scene in COCO's format, outlines as run lengths."""
    for number, drawn in enumerate(_drawn_objects(scene), start=first_id):
        rle = coco_mask.encode(np.asfortranarray(drawn.solid, np.uint8))
        counts = rle["counts"].decode("ascii")
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": drawn.instance.class_index + 1,
            # Each object is drawn by itself, so none is a crowd.
            "iscrowd": 0,
            "area": int(drawn.solid.sum()),
            "bbox": [drawn.x0, drawn.y0, drawn.x1 - drawn.x0, drawn.y1 - drawn.y0],
            "segmentation": {"size": list(drawn.solid.shape), "counts": counts},
        }


def _write_voc(year: Path, split: _Split) -> None:
    """Write the images, XML files, masks and lists of one split."""
    # All of them, as adapters look for folders that VOC has.
    for folder in VOC_FOLDERS:
        (year / folder).mkdir(parents=True, exist_ok=True)

    # The year in front of a name keeps the splits' names apart.
    names = []
    for number, scene in split.scenes():
        name = f"{2000 + split.part}_{number:06d}"
        names.append(name)
        _save_photo(scene, year / "JPEGImages" / f"{name}.jpg")
        _voc_mask(scene).save(year / "SegmentationClass" / f"{name}.png")
        annotation = year / "Annotations" / f"{name}.xml"
        annotation.write_text(_voc_xml(scene, name), encoding="utf-8")

    for kind in LIST_KINDS:
        path = year / "ImageSets" / kind / f"{split.name}.txt"
        path.write_text("\n".join(names) + "\n", encoding="utf-8")


def _write_voc_trainval(year: Path) -> None:
    for kind in LIST_KINDS:
        folder = year / "ImageSets" / kind
        texts = [(folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "val")]
        (folder / "trainval.txt").write_text("".join(texts), encoding="utf-8")


def _voc_mask(scene: Scene) -> Image.Image:
    """Return VOC's kind of mask: class indices under VOC's palette, outlines 255."""
    indices = [instance.class_index + 1 for instance in scene.instances]
    # A table from object to class: one indexing paints the whole mask.
    values = np.array([0, *indices], np.uint8)
    plane = np.where(scene.void_map, np.uint8(VOID), values[scene.instance_map])

    mask = Image.fromarray(plane)
    mask.putpalette(list(itertools.chain.from_iterable(voc_palette(VOID))))
    return mask


def _voc_xml(scene: Scene, name: str) -> str:
    """Return the objects of a scene in VOC's format: pixels count from 1, the last is included."""
    height, width = scene.instance_map.shape
    objects = "".join(_voc_object(drawn) for drawn in _drawn_objects(scene))
    return (
        f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>\n"
        f"\t<source><database>{ABOUT}</database></source>\n"
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )


def _voc_object(drawn: _Drawn) -> str:
    instance = drawn.instance
    return (
        f"\t<object><name>{NAMES[instance.class_index]}</name><pose>Unspecified</pose>"
        f"<truncated>{int(instance.truncated)}</truncated>"
        f"<difficult>{int(instance.difficult)}</difficult>"
        f"<bndbox><xmin>{drawn.x0 + 1}</xmin><ymin>{drawn.y0 + 1}</ymin>"
        f"<xmax>{drawn.x1}</xmax><ymax>{drawn.y1}</ymax></bndbox></object>\n"
    )
