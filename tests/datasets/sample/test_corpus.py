"""The built-in sample: same seed, same bytes; read by the real adapters; colors by skimage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn_sample import write_sample
from PIL import Image

from datasets.corpora.voc import CLASSES
from datasets.errors import CorpusError
from datasets.sample.corpus import SPLITS, open_sample
from datasets.sample.lab import lab_to_rgb
from datasets.sample.scenes import NAMES, draw_scene
from datasets.sample.writing import SampleSpec, write_parts

SPEC = SampleSpec(
    num_train=12,
    num_val=3,
    num_voc_train=5,
    num_voc_val=4,
    seed=3,
    size=96,
)


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "drawn"
    open_sample(folder, "train", SPEC)
    return folder


def test_classes_are_vocs() -> None:
    assert NAMES == CLASSES


def test_all_splits_open_by_the_real_adapters(root: Path) -> None:
    for split, count in zip(SPLITS, (12, 3, 5, 4), strict=True):
        corpus = open_sample(root, split)
        records = list(corpus.records())

        assert (
            corpus.name,
            corpus.split,
            corpus.classes,
        ) == ("sample", split, CLASSES)
        assert (
            corpus.num_records == len(records) == len({record.key for record in records}) == count
        )
        assert len(corpus.palette) == 21

        for record in records:
            with Image.open(record.image) as picture:
                assert max(picture.size) == 96
                assert picture.mode == "RGB"
                assert picture.size[::-1] == record.mask.read().shape


def test_masks_boxes_and_classes_agree(root: Path) -> None:
    for split in SPLITS:
        for record in open_sample(root, split).records():
            plane = record.mask.read()
            assert set(np.unique(plane).tolist()) - {0, 255} == {
                i + 1 for i in record.label["classes"]
            }
            covered = np.zeros(plane.shape, bool)
            for item in record.label["objects"]:
                x0, y0, x1, y1 = map(int, item["box"])
                inner = plane[y0:y1, x0:x1] == item["class"] + 1
                assert (
                    inner.any(0)[[0, -1]].all() and inner.any(1)[[0, -1]].all()
                )  # tight on all four sides
                covered[y0:y1, x0:x1] = True
            assert covered[(plane > 0) & (plane < 255)].all()


def test_voc_masks_have_outlines_and_difficult_objects_are_marked(tmp_path: Path) -> None:
    open_sample(
        tmp_path / "s",
        "voc-train",
        SampleSpec(1, 1, 40, 1, seed=0, size=64),
    )
    records = list(open_sample(tmp_path / "s", "voc-train").records())

    assert all((record.mask.read() == 255).any() for record in records if record.label["objects"])
    assert {item["difficult"] for record in records for item in record.label["objects"]} == {
        True,
        False,
    }


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(
    root: Path, tmp_path: Path
) -> None:
    numbers = {"num_train": 12, "num_val": 3, "num_voc_train": 5, "num_voc_val": 4, "size": 96}
    write_sample(
        tmp_path / "same",
        seed=3,
        **numbers,
    )
    write_sample(
        tmp_path / "other",
        seed=4,
        **numbers,
    )

    assert digest(tmp_path / "same") == digest(root)
    photos = {name: value for name, value in digest(root).items() if name.endswith(".jpg")}
    others = digest(tmp_path / "other")

    assert len(set(photos.values())) == len(photos) == 24  # no scene stands in two splits
    assert not set(photos.values()) & set(others.values())


def test_a_changed_request_is_noticed_and_the_same_one_draws_nothing(tmp_path: Path) -> None:
    root = tmp_path / "s"
    small = SampleSpec(1, 1, 1, 1, seed=0, size=32)
    open_sample(root, "train", small)
    before = (root / "sample.json").stat().st_mtime_ns
    open_sample(root, "val", small)

    assert open_sample(root, "voc-val").num_records == 1
    assert (root / "sample.json").stat().st_mtime_ns == before
    assert (
        open_sample(
            root,
            "train",
            SampleSpec(2, 1, 1, 1, seed=0, size=32),
        ).num_records
        == 2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_stamp_of_another_version_is_drawn_again(tmp_path: Path) -> None:
    root = tmp_path / "s"
    write_sample(
        root,
        num_train=1,
        num_val=1,
        num_voc_train=1,
        num_voc_val=1,
        size=32,
    )
    stamp = json.loads((root / "sample.json").read_text())
    (root / "sample.json").write_text(json.dumps({**stamp, "version": 0}))
    (root / "coco/train2017/000000000001.jpg").unlink()

    assert open_sample(root, "train").num_records == 1


def test_of_two_that_draw_the_same_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out/s"
    spec = SampleSpec(1, 1, 1, 1, seed=0, size=32)
    inodes = []

    def overtaken(fresh: Path, wanted: SampleSpec) -> None:
        """Draw, while another process puts the same sample into its place."""
        write_parts(fresh, wanted)
        monkeypatch.setattr("datasets.sample.corpus.write_parts", write_parts)
        open_sample(
            tmp_path / "other",
            "train",
            wanted,
        )
        (tmp_path / "other").rename(root)
        inodes.append(root.stat().st_ino)

    monkeypatch.setattr("datasets.sample.corpus.write_parts", overtaken)
    assert open_sample(root, "train", spec).num_records == 1
    assert [root.stat().st_ino] == inodes
    assert [path.name for path in root.parent.iterdir()] == ["s"]


def test_an_interrupted_drawing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.sample.corpus.write_parts", full)
    with pytest.raises(CorpusError, match=r"cannot be written here .No space left"):
        open_sample(
            tmp_path / "s",
            "train",
            SampleSpec(1, 1, 1, 1, size=32),
        )
    assert list(tmp_path.iterdir()) == []


def test_requests_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="'tarin' is no split of the sample"):
        open_sample(tmp_path / "s", "tarin")

    (tmp_path / "mine.txt").write_text("precious")

    for attempt in (
        lambda: open_sample(tmp_path, "train"),
        lambda: write_sample(tmp_path, num_train=1),
    ):
        with pytest.raises(CorpusError, match="holds no built-in sample"):
            attempt()

    with pytest.raises(CorpusError, match=r"cannot be written here|holds no built-in sample"):
        open_sample(tmp_path / "mine.txt", "train")
    with pytest.raises(CorpusError, match="num_val is 0"):
        SampleSpec(num_val=0)
    with pytest.raises(CorpusError, match="out of range"):
        SampleSpec(size=8)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_lab_to_rgb_agrees_with_skimage() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).integers(
        0,
        256,
        (64, 64, 3),
        np.uint8,
    )
    lab = color.rgb2lab(rgb).astype(np.float32)
    ours = lab_to_rgb(np.moveaxis(lab, -1, 0)).astype(int)
    difference = np.abs(ours - rgb)

    assert difference.max() <= 4
    assert difference[rgb > 40].max() <= 1


def test_color_depends_on_class_and_not_on_chance() -> None:
    hues: dict[int, list[float]] = {}
    color = pytest.importorskip("skimage.color")

    for index in range(60):
        scene = draw_scene((0, 0, index), 96)
        lab = color.rgb2lab(scene.rgb)
        for number, instance in enumerate(scene.instances, start=1):
            _, a, b = lab[scene.instance_map == number].mean(0)
            hues.setdefault(instance.class_index, []).append(np.angle(a + 1j * b))

    spread = [
        np.abs(np.angle(np.exp(1j * (np.array(h) - h[0])))).max()
        for h in hues.values()
        if len(h) > 1
    ]

    assert len(spread) > 15
    assert max(spread) < np.deg2rad(35)
