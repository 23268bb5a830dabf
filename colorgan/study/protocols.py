"""The evaluation protocols as plain data: images, network, schedule, score and source of each.

A study packs, trains and scores by them, once per arm and seed; the report quotes them. Nothing
here runs. Paper: Treneska et al., Sensors 2022, 22(4):1599; where its text and its code differ,
this is noted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from colorgan.config.recipe import StageRecipe, TaskName
from colorgan.errors import UsageError

Task = TaskName | Literal["linear", "lowshot", "knn", "softmax"]
RANDOM = "random"  # of probes, what SCRATCH is of runs: a start without pretraining
FROZEN: frozenset[str] = frozenset({"linear", "lowshot", "knn", "softmax"})
# Those without a score per image: the report shows their tables, the study compares no arms.
SHOWN_ONLY: frozenset[str] = frozenset({"lowshot", "knn"})
StartKind = Literal["scratch", "pretrained"]

# Each score that a protocol names, in the words of a table's head. Scores are shares in [0, 1].
METRIC_TITLES = {
    "mAP": "mean AP, VOC 2010+ (area under the curve, difficult left out)",
    "mAP_11_point": "mean AP, VOC 2007 (11 points, difficult left out)",
    "mAP_all_objects": "mean AP, area under the curve, difficult objects count",
    "first_positive_accuracy": "the paper's accuracy (best class is the first positive one)",
    "mIoU": "mean IoU at the network's size, void left out",
    "mIoU_void_as_background": "mean IoU at the network's size, void as background (the paper's "
    "code)",
    "mIoU_own_size": "mean IoU at each picture's own size, void left out",
    "pixel_accuracy": "pixel accuracy, void left out",
    "dice": "mean Dice of the classes but background, void left out",
    "AP50": "VOC box AP at IoU 0.5 (area under the curve)",
    "AP50_11_point": "VOC 2007 box AP at IoU 0.5 (11 points)",
    "AP": "COCO box AP, mean of IoU 0.5 to 0.95",
    "AP50_coco": "COCO box AP at IoU 0.5",
    "AP75": "COCO box AP at IoU 0.75",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}


# In the order in which a stratified call of the packer writes them.
FOLDS = ("train", "val", "test")


def last_fold(stratify: str) -> str:
    """Return the fold that a call of the packer with these shares writes last; empty without."""
    return FOLDS[len(_shares(stratify)) - 1] if stratify else ""


def _shares(stratify: str) -> list[float]:
    return [float(share) for share in re.split("[,+]", stratify)]


@dataclass(frozen=True)
class PackedPart:
    """One packed folder: the settings of launcher/pack.py beside --corpus, --root and --out.

    Attributes:
        split: `--split`.
        image: `--image`; `original` where images are scored at their own size.
        stratify: `--stratify`, shares in percent; such a call packs several folders.
        fold: which of those folders this part is: `train`, `val` or `test`; empty without
            `stratify`.
    """

    split: str
    image: str = "squash:256"
    stratify: str = ""
    fold: str = ""

    @property
    def pack_arguments(self) -> dict[str, str]:
        """Names (without `--`) and values for launcher/pack.py; stratified splits have seed 0."""
        stratified = {"stratify": self.stratify, "seed": "0"} if self.stratify else {}
        return {"split": self.split, "image": self.image, **stratified}

    @property
    def last_fold(self) -> str:
        """The fold that a stratified call of the packer writes last; empty without `stratify`."""
        return last_fold(self.stratify)

    def is_on_disk(self, root: Path) -> bool:
        """Return whether VOC's list of the split exists and one of its images has labels.

        Of a folder of photos: whether it has a folder of that name.

        Args:
            root: VOCdevkit, the folder that holds it, or one year's folder; or that of the photos.
        """
        if (root / self.split).is_dir():
            return True
        path = self._list(root)
        if path is None or path.is_dir():
            return path is not None

        # VOC's test lists come without labels in some archives.
        annotations = path.parents[2] / "Annotations"
        return any((annotations / f"{key}.xml").is_file() for key in path.read_text().split())

    def num_on_disk(self, root: Path) -> int | None:
        """Return the number of images of a split of VOC; None if it is not there or not VOC's."""
        path = self._list(root)
        if path is None:
            return None

        # `all` has no list of its own: its labels are its list.
        count = len(list(path.iterdir())) if path.is_dir() else len(path.read_text().split())
        if not self.stratify:
            return count
        share = _shares(self.stratify)[FOLDS.index(self.fold)]
        return round(count * share / 100)

    def _list(self, root: Path) -> Path | None:
        """Return what lists a split of VOC: a text file, or of `all` the folder of its labels."""
        year, _, name = self.split.partition("-")
        sets = "Segmentation" if name.startswith("seg-") else "Main"
        inside = {"all": "Annotations", "seg-all": "SegmentationClass"}.get(
            name, f"ImageSets/{sets}/{name.removeprefix('seg-')}.txt"
        )
        # Users name VOCdevkit, what holds it, or one year in it.
        for parent in (root, root / "VOCdevkit", root.parent):
            path = parent / f"VOC{year}" / inside
            if path.exists():
                return path
        return None


@dataclass(frozen=True)
class Split:
    """One way to split a corpus.

    Attributes:
        title: the parts in words.
        train: all arms train on it.
        test: the headline is computed on it, once, after training.
        selection: held out by the protocol itself, neither trained on nor in the headline.
    """

    title: str
    train: PackedPart
    test: PackedPart
    selection: PackedPart | None = None


@dataclass(frozen=True)
class Protocol:
    """One row of the table.

    Attributes:
        name: in settings and folders.
        title: in the report.
        task: classify, segment and detect train the network; linear, lowshot, knn and softmax
            judge its frozen features.
        corpus: `--corpus` of launcher/pack.py.
        data: ways to split the corpus, best first: the first whose parts are on disk (the test part
            with its labels) is taken, and the report names it.
        input: the network's input.
        head: the layers on the features.
        metric: the headline, a score of colorgan/evaluation/task_scores.py.
        further: other scores shown beside it.
        source: paper, section and year of the rules.
        stages: by kind of start; empty where only the head is trained.
        settings: further dotted keys of the fine-tuning recipe, the same for all arms. The network
            is not among them: from scratch it is that of the generator, with other weights.
    """

    name: str
    title: str
    task: Task
    corpus: str
    data: tuple[Split, ...]
    input: str
    head: str
    metric: str
    further: tuple[str, ...]
    source: str
    stages: Mapping[StartKind, tuple[StageRecipe, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def searchable(self) -> bool:
        """Whether the arms train alike, so that each may search a learning rate."""
        # A rate that differs by arm is part of the protocol, as in the paper's.
        return bool(self.stages) and self.stages["scratch"] == self.stages["pretrained"]


def _same_stages(epochs: float) -> dict[StartKind, tuple[StageRecipe, ...]]:
    """Return the same stage for all arms, so that only the weights they start from differ."""
    # A default for all arms: a study with `search` lets each arm choose.
    stage = StageRecipe(epochs=epochs, learning_rate=3e-4, schedule="cosine")
    return {"scratch": (stage,), "pretrained": (stage,)}


def _stratified(split: str, title: str, shares: str = "70,20,10") -> tuple[Split, ...]:
    """Return a split by class; one call of the packer makes the three parts.

    Args:
        split: what is split.
        title: of the split, in words.
        shares: of the parts that train, select and test, in percent; the paper's by default.
    """
    train, selection, test = (PackedPart(split, stratify=shares, fold=fold) for fold in FOLDS)
    return (Split(title, train, test, selection),)


_SQUASHED = "luminance alone, squashed to the network's square"
_CLASSIFIER = (
    "last level averaged (the U-Net's is 1x1), two dense layers of head_width (ReLU, "
    "dropout 0.5), one sigmoid a class"
)
_SEGMENTER = "the whole generator, its last layer replaced by one output a class and background"
# The same for all arms, so that none gains by it alone.
_AUGMENTED = {"data.flip": True, "data.random_crop_min_area": 0.5}
_PAPER = "Treneska et al., Sensors 2022, 22(4):1599"
_VOC2007 = (
    Split(
        "VOC 2007: trained on trainval, scored on test",
        PackedPart("2007-trainval"),
        PackedPart("2007-test"),
    ),
    Split(
        "VOC 2007: trained on train, scored on val (test is not on disk)",
        PackedPart("2007-train"),
        PackedPart("2007-val"),
    ),
)
_VOC2007_BOXES = (
    Split(
        "VOC 2007: trained on trainval, scored on test",
        PackedPart("2007-trainval"),
        PackedPart("2007-test", image="original"),
    ),
    Split(
        "VOC 2007: trained on train, scored on val (test is not on disk)",
        PackedPart("2007-train"),
        PackedPart("2007-val", image="original"),
    ),
)

# The paper's own first; the report keeps this order.
PROTOCOLS = (
    Protocol(
        name="paper-classification",
        title="Multilabel classification, the paper's protocol",
        task="classify",
        corpus="voc",
        data=_stratified(
            "2012-all", "VOC 2012: all annotated pictures, 70/20/10 stratified by class"
        ),
        input=_SQUASHED,
        head=_CLASSIFIER,
        stages={
            "scratch": (StageRecipe(epochs=4, learning_rate=3e-4),),
            "pretrained": (
                StageRecipe(epochs=3, learning_rate=3e-4, features="frozen"),
                StageRecipe(epochs=1, learning_rate=5e-5),
            ),
        },
        settings={"batch.global_batch_size": 32, "head_width": 4096},
        metric="first_positive_accuracy",
        further=("mAP_all_objects", "mAP"),
        source=f"{_PAPER}, classification: 47.18 % from scratch, 52.83 % pretrained; the "
        "code's schedule and accuracy",
    ),
    Protocol(
        name="paper-segmentation",
        title="Semantic segmentation, the paper's protocol",
        task="segment",
        corpus="voc",
        data=_stratified(
            "2012-seg-trainval", "VOC 2012: all masks, 70/20/10 stratified by the classes present"
        ),
        input=f"{_SQUASHED} (the code's; text: random crops)",
        head=_SEGMENTER,
        stages={
            "scratch": (StageRecipe(epochs=6, learning_rate=3e-4),),
            "pretrained": (
                StageRecipe(epochs=1, learning_rate=3e-4, features="frozen"),
                StageRecipe(epochs=5, learning_rate=5e-5),
            ),
        },
        settings={"batch.global_batch_size": 16, "void": "background"},
        metric="mIoU_void_as_background",
        further=("mIoU", "pixel_accuracy", "dice"),
        source=f"{_PAPER}, segmentation: 44.66 % from scratch, 47.07 % pretrained; void as in "
        "the code",
    ),
    Protocol(
        name="voc2012-classification",
        title="Multilabel classification, VOC 2012",
        task="classify",
        corpus="voc",
        data=(
            Split(
                "VOC 2012: trained on train, scored on val",
                PackedPart("2012-train"),
                PackedPart("2012-val"),
            ),
        ),
        input=_SQUASHED,
        head=_CLASSIFIER,
        stages=_same_stages(30),
        settings={"batch.global_batch_size": 32, **_AUGMENTED},
        metric="mAP",
        further=("mAP_11_point", "mAP_all_objects", "first_positive_accuracy"),
        source="Everingham et al., VOC 2012 development kit, classification task: AP as "
        "since 2010, difficult left out",
    ),
    Protocol(
        name="voc2012-segmentation",
        title="Semantic segmentation, VOC 2012",
        task="segment",
        corpus="voc",
        data=(
            Split(
                "VOC 2012: trained on seg-train, scored on seg-val",
                PackedPart("2012-seg-train"),
                PackedPart("2012-seg-val", image="original"),
            ),
        ),
        input=f"{_SQUASHED}; the outputs are scaled back to the picture's own size",
        head=_SEGMENTER,
        stages=_same_stages(60),
        settings={"batch.global_batch_size": 16, "void": "ignore", **_AUGMENTED},
        metric="mIoU_own_size",
        further=("mIoU", "pixel_accuracy", "dice"),
        source="Everingham et al., VOC 2012 development kit, segmentation task: IoU a class, "
        "void left out",
    ),
    Protocol(
        name="voc2007-classification",
        title="Multilabel classification, VOC 2007",
        task="classify",
        corpus="voc",
        data=_VOC2007,
        input=_SQUASHED,
        head=_CLASSIFIER,
        stages=_same_stages(30),
        settings={"batch.global_batch_size": 32, **_AUGMENTED},
        metric="mAP_11_point",
        further=("mAP", "mAP_all_objects"),
        source="Everingham et al., The PASCAL VOC challenge, IJCV 88, 2010, section 4.2: AP "
        "at 11 points; fine-tuned as by Zhang et al., Colorful Image Colorization, ECCV 2016, "
        "table 2",
    ),
    Protocol(
        name="voc2007-linear",
        title="Linear classifiers on frozen features, VOC 2007",
        task="linear",
        corpus="voc",
        data=_VOC2007,
        input=_SQUASHED,
        head="one linear classifier a class on frozen features, its regularization chosen "
        "within the training part",
        metric="mAP",
        further=("mAP_11_point",),
        source="Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation "
        "Learning, ICCV 2019, section 6.1",
    ),
    Protocol(
        name="voc2007-lowshot",
        title="Linear classifiers from few labels, VOC 2007",
        task="lowshot",
        corpus="voc",
        data=_VOC2007,
        input=_SQUASHED,
        head="one linear classifier a class on frozen features, from k positive pictures a class",
        metric="mAP",
        further=("mAP_11_point",),
        source="Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation "
        "Learning, ICCV 2019, section 6.2",
    ),
    Protocol(
        name="knn",
        title="Nearest neighbors among frozen features, VOC 2007",
        task="knn",
        corpus="voc",
        data=_VOC2007,
        input=_SQUASHED,
        head="weighted vote of the nearest training pictures by cosine similarity; nothing "
        "is trained",
        metric="mAP",
        further=("mAP_11_point",),
        source="Wu et al., Unsupervised Feature Learning via Non-Parametric Instance "
        "Discrimination, CVPR 2018, section 3.4, with VOC's classes in place of ImageNet's",
    ),
    Protocol(
        name="folder-softmax",
        title="Linear classification on frozen features, one class per photo",
        task="softmax",
        corpus="folder",
        data=(
            Split(
                "trained on the folder train, scored on val", PackedPart("train"), PackedPart("val")
            ),
            *_stratified(
                "all", "all photos, 40/10/50 stratified by class (no folder val)", "40,10,50"
            ),
        ),
        input=_SQUASHED,
        head="one softmax classifier on frozen features, its regularization chosen within the "
        "training part",
        metric="top1",
        further=("top5",),
        source="Zhang et al., Colorful Image Colorization, ECCV 2016, linear classification on "
        "ImageNet; features pooled as by Goyal et al., Scaling and Benchmarking Self-Supervised "
        "Visual Representation Learning, ICCV 2019; by L-BFGS as by Kornblith et al., Do Better "
        "ImageNet Models Transfer Better?, CVPR 2019",
    ),
    Protocol(
        name="voc2007-detection",
        title="Object detection, VOC 2007",
        task="detect",
        corpus="voc",
        data=_VOC2007_BOXES,
        input=_SQUASHED,
        head="FCOS's head on the U-Net's decoder",
        stages=_same_stages(60),
        settings={"batch.global_batch_size": 16, "data.flip": True},
        metric="AP50",
        further=("AP50_11_point", "AP", "AP75"),
        source="Everingham et al., The PASCAL VOC challenge, IJCV 88, 2010, section 4.2: box "
        "AP at IoU 0.5",
    ),
    Protocol(
        name="coco-detection",
        title="Object detection, COCO 2017",
        task="detect",
        corpus="coco",
        data=(
            Split(
                "COCO 2017: trained on train, scored on val",
                PackedPart("train2017"),
                PackedPart("val2017", image="original"),
            ),
        ),
        input=_SQUASHED,
        head="FCOS's head on the U-Net's decoder",
        stages=_same_stages(12),
        settings={"batch.global_batch_size": 32, "data.flip": True},
        metric="AP",
        further=("AP50_coco", "AP75", "AP50"),
        source="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, and the "
        "detection evaluation of "
        "cocodataset.org",
    ),
)


def find_protocol(name: str) -> Protocol:
    """Return the protocol of this name, or a variant of it.

    `NAME@10` trains on a stratified 10 % of its training part. `NAME@all` splits all photos of its
    corpus on disk by class, 40 % to train, 10 % to choose a rate, 50 % to test: for samples of VOC
    whose official parts differ in their classes, or have few photos to test.

    Raises:
        UsageError: there is none; the sentence names the nearest.
    """
    plain, at, share = name.partition("@")
    by_name = {protocol.name: protocol for protocol in PROTOCOLS}
    # The nearest, however far: the list is short, and users mistype the ending as often as the
    # start.
    if plain not in by_name:
        nearest = difflib.get_close_matches(plain, by_name, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"unknown protocol {plain!r}, do you mean {nearest}? There are: {', '.join(by_name)}"
        )
    if not at:
        return by_name[plain]
    return _of_all(by_name[plain]) if share == "all" else _with_labels(by_name[plain], share)


def missing_root(protocol: Protocol) -> str:
    """Return what is wrong where the folder of a protocol's corpus is not given."""
    return f"{protocol.name} needs --roots.{protocol.corpus}, the folder of that corpus"


def _of_all(protocol: Protocol) -> Protocol:
    """Return the protocol on all photos of its corpus, split by class."""
    if protocol.corpus != "voc":
        raise UsageError(f"{protocol.name}@all: only sets of VOC can be split anew")

    official = protocol.data[0]
    year, _, name = official.train.split.partition("-")
    split = f"{year}-seg-all" if name.startswith("seg-") else f"{year}-all"
    # Half to test: a sample of VOC has few images of its rare classes.
    shares = "40,10,50"
    title = f"VOC {year}: all photos on disk, {shares.replace(',', '/')} stratified by class"
    parts = Split(
        title,
        PackedPart(split, official.train.image, shares, "train"),
        PackedPart(split, official.test.image, shares, "test"),
        PackedPart(split, official.train.image, shares, "val"),
    )
    return replace(
        protocol,
        name=f"{protocol.name}@all",
        title=f"{protocol.title}, all photos split anew",
        data=(parts,),
    )


def _with_labels(protocol: Protocol, share: str) -> Protocol:
    """Return the protocol on a share of its training images, in percent, stratified by class."""
    if not share.isdigit() or not 0 < int(share) < 100:
        raise UsageError(
            f"{protocol.name}@{share}: give the labels as a whole percentage, 1 to 99, or all"
        )
    if any(split.train.stratify for split in protocol.data):
        raise UsageError(
            f"{protocol.name}@{share}: its training part is a stratified split already; "
            "take a protocol with fixed splits"
        )

    fewer = []
    for split in protocol.data:
        stratify = f"{share},{100 - int(share)}"
        # Stratified by class, or a tenth of the labels would miss rare classes.
        train = replace(split.train, stratify=stratify, fold="train")
        fewer.append(replace(split, title=f"{split.title}, {share} % of the labels", train=train))
    return replace(
        protocol,
        name=f"{protocol.name}@{share}",
        title=f"{protocol.title}, {share} % of the labels",
        data=tuple(fewer),
    )
