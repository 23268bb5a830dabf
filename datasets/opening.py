"""Open a corpus by its name, and fetch its official archives; used by launcher/pack.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from datasets.corpora.coco import open_coco
from datasets.corpora.folder import open_folder
from datasets.corpora.imagenet import open_imagenet
from datasets.corpora.voc import open_voc
from datasets.download.archives import archives_for
from datasets.download.download import Progress, download
from datasets.sample.corpus import open_sample
from shards.records import Corpus

CorpusName = Literal["coco", "voc", "imagenet", "folder", "sample"]

OPENERS: dict[str, Callable[[Path, str], Corpus]] = {
    "coco": open_coco,
    "voc": open_voc,
    "imagenet": open_imagenet,
    "folder": open_folder,
    "sample": open_sample,
}


def open_corpus(
    name: CorpusName, root: Path, split: str, mask_threshold: int | None = None
) -> Corpus:
    """Open a split with its adapter.

    Args:
        name: of the corpus.
        root: its folder.
        split: as the adapter names it.
        mask_threshold: for `folder` only: mask values from this one on are the class.

    Raises:
        CorpusError: the split is missing, malformed or ambiguous.
    """
    # Only masks of unknown tools have soft edges; the other corpora say what theirs mean.
    if name == "folder":
        return open_folder(root, split, mask_threshold)
    return OPENERS[name](root, split)


def fetch_corpus(
    name: CorpusName, root: Path, split: str, mirror: str | None, progress: Progress
) -> list[str]:
    """Fetch and unpack the official archives that a split needs and its root has not.

    Returns:
        The names of those that were fetched.

    Raises:
        DownloadError: no official archive, or it cannot be fetched or unpacked safely.
    """
    # An archive that is unpacked already is not fetched again.
    return download(archives_for(name, split), root, mirror=mirror, progress=progress)
