"""The official archives of COCO and VOC: addresses, sizes, digests, and the splits they hold.

Facts only; download.py fetches and unpack.py unpacks. Sizes and sha256 are those of TensorFlow
Datasets (url_checksums/coco.txt and voc.txt); of unlabeled2017 only the md5 is published.
"""

import re
from dataclasses import dataclass

from datasets.errors import DownloadError

COCO_HOST = "http://images.cocodataset.org"
VOC_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"


@dataclass(frozen=True, slots=True)
class Archive:
    """One official file.

    Attributes:
        url: its address; a mirror replaces all but the last part.
        bytes: its exact size.
        digest: `sha256:` or `md5:` and the hexadecimal digest of its bytes.
        top: the one folder that it unpacks to.
        proof: a path below the root that exists once it is unpacked.
    """

    url: str
    bytes: int
    digest: str
    top: str
    proof: str

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.url.rpartition("/")[2]


def _coco_pictures(split: str, size: int, digest: str) -> Archive:
    return Archive(f"{COCO_HOST}/zips/{split}.zip", size, digest, split, split)


def _coco_annotations(year: str, size: int, digest: str) -> Archive:
    url = f"{COCO_HOST}/annotations/annotations_trainval{year}.zip"
    return Archive(url, size, digest, "annotations", f"annotations/instances_train{year}.json")


def _voc(year: str, name: str, size: int, digest: str, proof: str) -> Archive:
    return Archive(
        f"{VOC_HOST}/voc{year}/{name}", size, digest, "VOCdevkit", f"VOCdevkit/VOC{year}/{proof}"
    )


COCO = {
    "train2014": _coco_pictures(
        "train2014",
        13_510_573_713,
        "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    "val2014": _coco_pictures(
        "val2014",
        6_645_013_297,
        "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
    "test2014": _coco_pictures(
        "test2014",
        6_660_437_059,
        "sha256:ead40c62230cb2cf70ff4c8b4c70abdc260a7556e77b3282621d06d8e2e35bdf",
    ),
    "train2017": _coco_pictures(
        "train2017",
        19_336_861_798,
        "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    "val2017": _coco_pictures(
        "val2017",
        815_585_330,
        "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    "test2017": _coco_pictures(
        "test2017",
        6_646_970_404,
        "sha256:c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
    ),
    # An md5 finds a broken download; against an attacker it is worth little.
    "unlabeled2017": _coco_pictures(
        "unlabeled2017", 20_126_613_414, "md5:7ebc562819fdb32847aab79530457326"
    ),
}
COCO_ANNOTATIONS = {
    "2014": _coco_annotations(
        "2014",
        252_872_794,
        "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "2017": _coco_annotations(
        "2017",
        252_907_541,
        "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
}
VOC = {
    "2007": _voc(
        "2007",
        "VOCtrainval_06-Nov-2007.tar",
        460_032_000,
        "sha256:7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        "ImageSets/Main/trainval.txt",
    ),
    "2007-test": _voc(
        "2007",
        "VOCtest_06-Nov-2007.tar",
        451_020_800,
        "sha256:6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        "ImageSets/Main/test.txt",
    ),
    "2012": _voc(
        "2012",
        "VOCtrainval_11-May-2012.tar",
        1_999_639_040,
        "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        "ImageSets/Main/trainval.txt",
    ),
}


def archives_for(corpus: str, split: str) -> tuple[Archive, ...]:
    """Return the archives that a split of a corpus needs.

    Raises:
        DownloadError: A corpus or split that cannot be fetched, or a split without its year.
    """
    if corpus == "coco":
        return _coco_archives(split)
    if corpus == "voc":
        return _voc_archives(split)
    raise DownloadError(
        f"{corpus}: only coco and voc can be downloaded; give --root a copy of your own."
    )


def _coco_archives(split: str) -> tuple[Archive, ...]:
    split = "unlabeled2017" if split == "unlabeled" else split
    pictures = COCO.get(split)
    if pictures is None:
        raise DownloadError(
            f"coco {split}: name the split with its year, one of {', '.join(COCO)}."
        )

    # One archive of labels holds both splits of a year.
    if split.startswith(("train", "val")):
        return pictures, COCO_ANNOTATIONS[split[-4:]]
    return (pictures,)


def _voc_archives(split: str) -> tuple[Archive, ...]:
    match = re.fullmatch(r"(2007|2012)-(all|(?:seg-)?(?:train|val|trainval|test))", split)
    if match is None:
        raise DownloadError(
            f"voc {split}: name the split with its year, as in 2012-train or 2007-test."
        )

    year, name = match.groups()
    # Named here, as no address would ever answer.
    if name.endswith("test") and year == "2012":
        raise DownloadError(
            "voc 2012-test: only its evaluation server gives it out, after a login; put it into "
            "--root."
        )
    if name.endswith("test"):
        return (VOC["2007-test"],)
    if (year, name) == ("2007", "all"):
        return VOC["2007"], VOC["2007-test"]
    return (VOC[year],)
