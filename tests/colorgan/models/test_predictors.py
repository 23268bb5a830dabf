"""Fine-tuned models with one call: the network's answer, at each photo's size, one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import small_config
from PIL import Image
from torch.nn import functional as F

from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.colorizing import PhotoRows, luminance_square
from colorgan.models.detector import detect
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from colorgan.models.photo_input import as_photo
from colorgan.models.predictors import Boxes, Classifier, Detector, Labels, Mask, Segmenter

CLASSES = ("cat", "dog", "owl")
PHOTOS = [
    Image.fromarray(np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8))
    for index, size in enumerate([(45, 61), (20, 33), (200, 90)])
]


def folder_of(kind: str, folder: Path, inference: str = "running") -> Path:
    outputs = len(CLASSES) + (kind == "segmenter")
    config = small_config(
        kind,
        outputs,
        classes=CLASSES,
        inference=inference,
    )
    model = build_model(config)
    initialise(model, 1)
    save_model(
        folder / kind,
        model,
        config,
    )

    return folder / kind


def luminance(photo: Image.Image) -> torch.Tensor:
    return luminance_square(
        PhotoRows.of(as_photo(photo)),
        32,
    )


def test_labels_are_the_network_s(tmp_path: Path) -> None:
    classifier = Classifier.from_pretrained(folder_of("classifier", tmp_path))
    answers = classifier.predict(PHOTOS)
    for photo, answer in zip(PHOTOS, answers, strict=True):
        assert isinstance(answer, Labels)
        with torch.no_grad():
            expected = classifier.network(luminance(photo))[0].sigmoid()
        assert tuple(answer.scores) == CLASSES
        torch.testing.assert_close(
            torch.tensor(list(answer.scores.values())),
            expected,
        )

    assert Labels({"a": 0.6, "b": 0.2, "c": 0.9}).present == ("c", "a")


def test_masks_are_logits_brought_to_the_photo_s_size(tmp_path: Path) -> None:
    segmenter = Segmenter.from_pretrained(folder_of("segmenter", tmp_path))

    for photo, answer in zip(PHOTOS, segmenter.predict(PHOTOS), strict=True):
        assert isinstance(answer, Mask)
        size = (photo.height, photo.width)
        with torch.no_grad():
            logits = segmenter.network(luminance(photo))
        wide = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        # Height and width one after the other round otherwise: equal but where two classes tie.
        first, second = wide.topk(2, dim=0).values
        clear = first - second > 1e-5
        assert torch.equal(
            answer.index_HW[clear],
            wide.argmax(0).to(torch.uint8)[clear],
        )
        assert clear.float().mean() > 0.9
        assert sum(answer.shares.values()) == pytest.approx(1.0)


def test_boxes_are_in_the_photo_s_pixels(tmp_path: Path) -> None:
    detector = Detector.from_pretrained(folder_of("detector", tmp_path))
    photo = PHOTOS[0]
    answer = detector.predict(photo)

    assert isinstance(answer, Boxes)
    with torch.no_grad():
        (expected,) = detect(detector.network(luminance(photo)))

    assert len(expected.boxes_N4) > 0
    scaled = expected.boxes_N4 * torch.tensor([61.0, 45.0, 61.0, 45.0])
    torch.testing.assert_close(answer.boxes_N4, scaled)

    assert answer.names == tuple(CLASSES[index] for index in expected.classes_N.tolist())


@pytest.mark.parametrize("inference", ["running", "paper"])
def test_a_photo_s_answer_does_not_depend_on_the_others(tmp_path: Path, inference: str) -> None:
    classifier = Classifier.from_pretrained(folder_of("classifier", tmp_path, inference))
    together = classifier.predict(PHOTOS)
    alone = [classifier.predict(photo) for photo in PHOTOS]
    for one, other in zip(together, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
    assert classifier.predict([]) == []


def test_other_kinds_and_other_photos_are_refused(tmp_path: Path) -> None:
    folder = folder_of("classifier", tmp_path)
    with pytest.raises(ModelFolderError, match="holds a classifier, a segmenter is needed"):
        Segmenter.from_pretrained(folder)
    with pytest.raises(UsageError, match="values from 0 to 255"):
        Classifier.from_pretrained(folder).predict(np.linspace(0, 255, 64).reshape(8, 8))
