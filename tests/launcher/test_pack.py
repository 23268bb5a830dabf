"""launcher/pack.py as a user runs it: a folder of pictures in, shards and plain words out."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Command
from helpers.drawn_sample import write_sample
from PIL import Image

from colorgan.errors import UsageError
from datasets.errors import CorpusError
from shards.errors import ShardError
from shards.manifest import read_manifest

PROJECT = Path(__file__).parents[2]
DATA = PROJECT / "../shared/data"


def run(*words: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "launcher" / "pack.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "train").mkdir(parents=True)
    for number in range(6):
        pixels = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"p{number}.png")
    (root / "train" / "p9.jpg").write_bytes(b"")
    return root


def test_a_folder_is_packed_verified_and_mended_from_anywhere(
    pictures: Path, tmp_path: Path
) -> None:
    words = (
        "--corpus",
        "folder",
        "--root",
        "pictures",
        "--split",
        "train",
        "--out",
        "packed",
        "--image",
        "squash:8",
    )
    first = run(*words, "--workers", 2, cwd=tmp_path)

    assert first.returncode == 0, first.stderr

    lines = first.stdout.splitlines()

    assert lines[0].startswith("read 7 pictures in ") and "images/s" in lines[0]
    assert lines[1].startswith("packed: 6 samples in 1 shard, ")
    assert lines[-6:-1] == [
        "left out: 1",
        "  1 empty file (train/p9.jpg)",
        "  each of the 1 rejected is in packed/rejected.jsonl",
        "  once such a file can be read, --only NUMBER packs its shard again",
        "look at packed/sample.png: some samples with their labels drawn",
    ]
    assert lines[-1] == "next: accelerate launch launcher/pretrain.py --data.train packed"

    again = run(*words, cwd=tmp_path)

    assert again.stdout.startswith("packed: packed already with this request; nothing to do.")

    out = tmp_path / "packed"
    shard = out / read_manifest(out).shards[0].file
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    damaged = run("--verify", "packed", cwd=tmp_path)

    assert damaged.returncode == 2 and damaged.stderr.startswith(
        "ManifestError: packed: 1 of its files"
    )
    assert re.search(r"p0-\w+ \(sample 0\): image: checksum differs", damaged.stdout)
    assert run(*words, "--only", 0, cwd=tmp_path).returncode == 0

    verified = run("--verify", "packed", cwd=tmp_path)

    assert verified.returncode == 0 and ": 6 samples checked" in verified.stdout


def test_names_that_the_terminal_cannot_show_are_escaped(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "p9.jpg").rename(pictures / "train" / "\u00fcn\u00ef.jpg")
    command = [sys.executable, str(PROJECT / "launcher" / "pack.py"), "--corpus", "folder"]
    command += ["--root", str(pictures), "--split", "train", "--out", str(tmp_path / "packed")]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )

    assert result.returncode == 0, result.stderr
    assert r"1 empty file (train/\xfcn\xef.jpg)" in result.stdout


def test_parts_are_packed_and_merged(command: Command, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    words = ("--corpus", "folder", "--root", pictures, "--split", "train", "--out", out)
    for part in ("2/2", "1/2"):
        told = command("pack", *words, "--samples_per_shard", 3, "--part", part, "--workers", 1)
        assert told.splitlines()[-1].endswith(f"python launcher/pack.py --out {out} --merge")
    for _ in range(2):
        assert f"{out}: 6 samples in 2 shards" in command("pack", "--out", out, "--merge")

    assert [shard.samples for shard in read_manifest(out).shards] == [3, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--corpus, --root, --split, --out: required, not given"),
        (("--merge",), "--out: required, not given"),
        (
            ("--corpus", "folder", "--root", "x", "--out", "y"),
            r"--split: required, not given \(train, val, ... as the corpus names it",
        ),
        (("--merge", "--only", "3"), "--only and --merge do not go together"),
        (("--corpus", "cocoa"), "coco"),
        (("--download", "--corpus", "coco", "--root", "x", "--split", "train"), "with its year"),
        (
            ("--out", "x", "--merge", "--stratify", "70,20"),
            "'70,20': give two or three percentages",
        ),
        (
            (
                "--corpus",
                "voc",
                "--root",
                "x",
                "--split",
                "all",
                "--out",
                "x",
                "--stratify",
                "80,20",
                "--only",
                "3",
            ),
            "--only",
        ),
        (("--download", "--out", "x"), "--corpus, --root, --split: required, not given"),
        (("--out", "x", "--merge"), "x: nothing to merge"),
        (("--verify", "nowhere"), "nowhere: no such folder"),
        (("--corpus", "coco", "--root", "nowhere", "--split", "train", "--out", "x"), "nowhere"),
    ],
)
def test_mistakes_are_told_in_words(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, ShardError, CorpusError), match=message):
        command("pack", *words)
    assert not list(tmp_path.iterdir())


def test_a_packed_folder_keeps_its_settings(
    command: Command, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--corpus", "folder", "--root", pictures, "--split", "all", "--out", out)
    words = (*map(str, words), "--workers", "1")
    command("pack", *words, "--image", "short:16")
    # The same in other words, and what the folder does not keep, pass.
    command("pack", *words, "--append", "--image", "short:16", "--min_chroma", "0")
    for mode in (("--append",), ("--only", "0")):
        for name, value, there in (("image", "squash:8", "short:16"), ("min_chroma", "1.5", "0.0")):
            with pytest.raises(ShardError, match=f"is packed with --{name} {there}, .* {value}; "):
                command("pack", *words, *mode, f"--{name}", value)


def test_a_mistake_ends_in_one_sentence_and_status_2(pictures: Path, tmp_path: Path) -> None:
    words = (
        "--corpus",
        "folder",
        "--root",
        pictures,
        "--split",
        "train",
        "--out",
        tmp_path / "packed",
    )
    result = run(*words, "--image", "squash:banana")

    assert result.returncode == 2
    assert (
        result.stderr.startswith("PackError: image policy 'squash:banana'")
        and result.stderr.count("\n") == 1
    )
    assert not (tmp_path / "packed").exists()


@pytest.mark.skipif(
    not DATA.is_dir(), reason="the real pictures (../shared/data) are not on this machine"
)
def test_real_pictures_are_packed(command: Command, tmp_path: Path) -> None:
    for corpus, root, split, masks in (
        ("coco", DATA / "coco", "val", True),
        ("voc", DATA / "VOCdevkit", "2012-seg-val", True),
        ("imagenet", DATA / "imagenet", "train", False),
    ):
        out = tmp_path / corpus
        words = (
            "--corpus",
            corpus,
            "--root",
            root,
            "--split",
            split,
            "--out",
            out,
            "--image",
            "squash:32",
        )
        command("pack", *words, "--workers", 1)
        manifest = read_manifest(out)

        assert manifest.has_masks == masks and manifest.num_rejected == 0
        assert len(manifest.classes) in (20, 80, 60) and manifest.num_samples > 50


def test_a_stratified_split_is_packed_as_parts_and_resumed(
    command: Command, tmp_path: Path
) -> None:
    write_sample(tmp_path / "raw", num_train=1, num_val=1, num_voc_train=40, num_voc_val=1, size=32)
    out = tmp_path / "packed"
    words = [
        "--corpus",
        "voc",
        "--root",
        tmp_path / "raw",
        "--split",
        "2012-seg-train",
        "--out",
        out,
    ]
    words += ["--image", "squash:32", "--workers", 1]
    command("pack", *words, "--stratify", "70,20,10")
    listed = {name: (out / f"{name}.txt").read_text().split() for name in ("train", "val", "test")}

    for name, keys in listed.items():
        manifest = read_manifest(out / name)
        assert manifest.split == f"2012-seg-train-{name}-of-70-20-10-seed-0"
        assert manifest.has_masks and manifest.num_samples == len(keys)
        with tarfile.open(out / name / manifest.shards[0].file) as shard:
            assert {Path(member).stem for member in shard.getnames()} == set(keys)

    shutil.rmtree(out / "val")
    told = command("pack", *words, "--stratify", "70,20,10")

    assert (
        told.count("packed already with this request") == 2
        and f"{out / 'val'}: {len(listed['val'])} samples" in told
    )
    assert sum(map(len, listed.values())) == len(set().union(*listed.values())) == 40
    with pytest.raises(CorpusError, match=r"train.txt: lists another split; give another --out"):
        command("pack", *words, "--stratify", "70,20,10", "--seed", 1)
