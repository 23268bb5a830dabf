"""The built-in sample: drawn scenes, written like real sets, opened by the same adapters.

    <root>/sample.json                                the request, so that another one is noticed
    <root>/coco/{train2017,val2017,annotations}       COCO part: splits `train` and `val`
    <root>/VOCdevkit/VOC2012/...                      VOC part, with masks: `voc-train`, `voc-val`

It lets a machine without any data run every command in minutes. It is no benchmark: a score on it
shows that the code works, nothing about photographs. 2,100 scenes of 128 pixels take about 7 s and
25 MB.
"""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

from datasets.corpora.coco import open_coco
from datasets.corpora.voc import open_voc
from datasets.errors import CorpusError
from datasets.sample.writing import SampleSpec, write_parts
from shards.records import Corpus

VERSION = 1  # of the drawing: raise it whenever the same seed gives other bytes
# The splits of the sample, and their names for the adapters of its parts.
SPLITS = {"train": "train", "val": "val", "voc-train": "2012-seg-train", "voc-val": "2012-seg-val"}
STAMP = "sample.json"

logger = logging.getLogger("datasets")


@dataclasses.dataclass(frozen=True, slots=True)
class _Stamp:
    """What sample.json holds: the version of the drawing, and the request."""

    version: int
    spec: SampleSpec


def open_sample(root: Path, split: str, spec: SampleSpec | None = None) -> Corpus:
    """Open a split of the sample; draw it first if it is not there yet.

    Args:
        root: the sample's folder; made if it is missing.
        split: `train` or `val` (COCO part), `voc-train` or `voc-val` (VOC part, with masks).
        spec: the request. A sample of another one in the folder is drawn anew. None takes the one
            that is there, or the default.

    Raises:
        CorpusError: an unknown split, a folder that holds something else, or one that cannot be
            written.
    """
    if split not in SPLITS:
        raise CorpusError(f"{split!r} is no split of the sample: it has {', '.join(SPLITS)}.")

    present = _read_stamp(root)
    wanted = _Stamp(VERSION, spec or (present.spec if present else SampleSpec()))
    # Another request draws anew: a sample of other sizes would be packed unnoticed.
    if present != wanted:
        _replace(root, wanted, present)

    if split.startswith("voc-"):
        corpus = open_voc(root / "VOCdevkit", SPLITS[split])
    else:
        corpus = open_coco(root / "coco", SPLITS[split])
    return dataclasses.replace(corpus, name="sample", split=split)


def _read_stamp(root: Path) -> _Stamp | None:
    """Return the stamp of the sample in a folder; None if the folder is missing or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        stamp = json.loads((root / STAMP).read_text(encoding="utf-8"))
        return _Stamp(int(stamp.pop("version")), SampleSpec(**stamp))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorpusError(
            f"{root}: is not empty and holds no built-in sample; give a new or an empty folder."
        ) from error


def _replace(root: Path, wanted: _Stamp, before: _Stamp | None) -> None:
    """Draw into a folder beside the root, then swap it in; `before` is the root's own stamp."""
    root = root.absolute()
    fresh = root.with_name(f".{root.name}.new-{os.getpid()}")
    old = root.with_name(f".{root.name}.old-{os.getpid()}")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _write(fresh, wanted)

        # Asked again: drawing takes seconds, and another process may have been faster.
        now = _read_stamp(root)
        if now != before and now == wanted:
            return  # another process was first with the same sample and may be reading it
        if root.exists():
            root.rename(old)
        # Whole or not at all: another process may open the folder at this moment.
        fresh.rename(root)
    except OSError as error:
        raise CorpusError(
            f"{root}: the sample cannot be written here ({error.strerror or error})."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, stamp: _Stamp) -> None:
    """Draw both parts; the stamp comes last."""
    spec = stamp.spec
    logger.info(
        "drawing the built-in sample: %d scenes of %d pixels, no benchmark",
        spec.num_scenes,
        spec.size,
    )
    # Left by a killed process of the same id.
    shutil.rmtree(root, ignore_errors=True)
    write_parts(root, spec)
    text = json.dumps({"version": stamp.version, **spec.to_json()})
    (root / STAMP).write_text(f"{text}\n", encoding="utf-8")
