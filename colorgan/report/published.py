"""Published results (Treneska et al., Sensors 2022, 22(4), 1599) and the names of our scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score as the log names it, and how it is told."""

    key: str
    name: str
    meaning: str
    scale: float = 100.0
    unit: str = "%"


OWN_SIZE = "_own_size"  # ends the name of a score that a generator has at each photo's own size
KIND_NAMES = {
    "pretrain": "pretraining",
    "classify": "classification",
    "segment": "segmentation",
    "detect": "detection",
}
TITLES = {
    "classify": "Classification",
    "segment": "Segmentation",
    "detect": "Detection",
}
METRICS = {
    "classify": (
        Metric(
            "first_positive_accuracy",
            "First-positive accuracy",
            "arg-max = first class present; the paper's accuracy",
        ),
        Metric(
            "mAP",
            "mAP",
            "mean average precision, VOC 2010+, difficult objects left out",
        ),
        Metric(
            "mAP_11_point",
            "mAP, 11 points",
            "VOC 2007's, difficult objects left out",
        ),
        Metric(
            "mAP_all_objects",
            "mAP, all objects",
            "VOC 2010+'s area, difficult objects count",
        ),
    ),
    "segment": (
        Metric(
            "mIoU_void_as_background",
            "mIoU, void as background",
            "void pixels count as background; the paper's",
        ),
        Metric(
            "mIoU",
            "mIoU, void ignored",
            "void left out, at the network's size",
        ),
        Metric(
            "mIoU_own_size",
            "mIoU, own size",
            "void left out, at each picture's own size; VOC's way",
        ),
        Metric(
            "pixel_accuracy",
            "Pixel accuracy",
            "share of pixels, void ignored",
        ),
        Metric("dice", "Dice", "mean over classes, void ignored"),
    ),
    "detect": (
        Metric("AP50", "AP50, VOC", "box AP at IoU 0.5, VOC's rules"),
        Metric(
            "AP",
            "AP, COCO",
            "box AP, mean of IoU 0.5 to 0.95, COCO's rules",
        ),
        Metric(
            "AP50_coco",
            "AP50, COCO",
            "box AP at IoU 0.5, COCO's rules",
        ),
        Metric(
            "AP75",
            "AP75, COCO",
            "box AP at IoU 0.75, COCO's rules",
        ),
    ),
}


@dataclass(frozen=True)
class Published:
    """A result of the paper (Treneska et al. 2022) and the protocol it was computed with."""

    protocol: str
    data: str
    images: int
    classes: int
    size: int
    metric: str
    scratch: float
    pretrained: float


PAPER = {
    "classify": Published(
        protocol="paper-classification",
        data="VOC 2012, all annotated images, 70/20/10 stratified; the 10 %",
        images=1713,
        classes=20,
        size=256,
        metric="first_positive_accuracy",
        scratch=47.18,
        pretrained=52.83,
    ),
    "segment": Published(
        protocol="paper-segmentation",
        data="VOC 2012 masks, 70/20/10 stratified; the 10 %",
        images=297,
        classes=21,
        size=256,
        metric="mIoU_void_as_background",
        scratch=44.66,
        pretrained=47.07,
    ),
}
PAPER_COLORS = {
    "psnr": 20.94,
    "psnr_min": 8.82,
    "psnr_max": 42.61,
    "ssim": 0.85,
    "ssim_min": 0.31,
    "ssim_max": 0.99,
}
# Its Table 2: other networks and protocols, on whole VOC. Classification mAP, segmentation mIoU,
# detection mAP, in %.
EARLIER = (
    ("Zhang 2016, AlexNet", 65.9, 35.6, 47.9),
    ("Larsson 2016, VGG-16", None, 50.2, None),
    ("Larsson 2017, ResNet-152", 77.3, 60.0, None),
    ("Zhang 2017, split-brain", 67.1, 36.0, 46.7),
)


@dataclass(frozen=True)
class PublishedSvm:
    """A published mAP of linear SVMs on frozen features: VOC 2007, trainval to test, whole.

    Attributes:
        method: What the network was pretrained by.
        level: The level with the best mAP, of five, the first the finest.
        mAP: In percent.
    """

    method: str
    level: int
    mAP: float


# Linear SVMs on levels pooled to about 9,000 numbers (Goyal et al., ICCV 2019, section 6.1):
# OpenSelfSup (open-mmlab), docs/MODEL_ZOO.md, "VOC07 SVM & SVM Low-shot". All ResNet-50 with RGB
# at 224 pixels, pretrained on ImageNet-1k, labels for the first only.
SVM_BACKBONE, SVM_DATA, SVM_SOURCE = "ResNet-50", "ImageNet-1k", "OpenSelfSup, MODEL_ZOO.md"
PUBLISHED_SVM = (
    PublishedSvm("supervised (torchvision)", 5, 87.17),
    PublishedSvm("random weights", 2, 30.54),
    PublishedSvm("relative location, Doersch 2015", 4, 64.78),
    PublishedSvm("rotation, Gidaris 2018", 4, 67.38),
    PublishedSvm("DeepCluster, Caron 2018", 5, 74.26),
    PublishedSvm("NPID, Wu 2018", 5, 74.50),
    PublishedSvm("ODC, Zhan 2020", 5, 78.42),
    PublishedSvm("MoCo, He 2020", 5, 79.18),
    PublishedSvm("SimCLR, Chen 2020", 5, 78.95),
    PublishedSvm("MoCo v2, Chen 2020", 5, 84.26),
    PublishedSvm("BYOL, Grill 2020", 5, 86.58),
)
PAPER_COLOR_DATA, PAPER_COLOR_IMAGES, PAPER_COLOR_SIZE = "COCO 2014 test, random", 4000, 256
