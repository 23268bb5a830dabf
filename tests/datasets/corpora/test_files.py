"""Keys, names of files, links, and what is left out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.corpora.files import (
    MAX_KEY_LENGTH,
    FileNames,
    Skipped,
    inside,
    list_pictures,
    record_key,
    require_files,
    walk_pictures,
)
from datasets.errors import CorpusError

names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    min_size=1,
)
paths = st.lists(
    names.filter(lambda name: name not in (".", "..")), min_size=1
)  # no file bears these names


@given(
    st.sets(
        paths.map("/".join).map(lambda path: path + ".jpg") | paths.map("/".join),
        max_size=30,
    )
)
def test_keys_are_plain_short_and_unique(relatives: set[str]) -> None:
    keys = [record_key(relative) for relative in relatives]
    assert all(key and len(key) <= MAX_KEY_LENGTH for key in keys)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        for key in keys
    )
    assert len(set(keys)) == len(relatives)


@pytest.mark.parametrize(
    "first, second",
    [
        ("a b.jpg", "a_b.jpg"),
        ("a.png", "a.jpg"),
        ("a/b.jpg", "a_b.jpg"),
    ],
)
def test_keys_of_paths_that_look_alike_differ(first: str, second: str) -> None:
    assert record_key(first) != record_key(second)
    assert record_key(second) == second.removesuffix(".jpg")


def test_a_file_cannot_take_the_key_made_for_another() -> None:
    made = record_key("a b.jpg")
    assert record_key(f"{made}.jpg") != made


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "", "a\0.jpg"]
)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(CorpusError, match=r"list\.txt: names .* no file inside"):
        inside(Path("pictures"), name, Path("list.txt"))


def test_missing_files_are_counted_and_the_first_named() -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    found = ["a.jpg", None, None]

    with pytest.raises(CorpusError, match=r"2 of the files .* the first is b\.jpg"):
        require_files(names, found, Path("pictures"), Path("list.txt"))
    assert (
        require_files(
            names,
            names,
            Path("pictures"),
            Path("list.txt"),
        )
        == names
    )


def test_two_names_of_one_file_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"a\.jpg and A\.JPG are the same file, a\.jpg"):
        require_files(
            ["a.jpg", "A.JPG"],
            ["a.jpg"] * 2,
            Path("pictures"),
            Path("list.txt"),
        )


def test_names_are_found_exactly_then_by_case_and_unicode_form(tmp_path: Path) -> None:
    for name in ("a.jpg", "A.JPG", "B.Jpg", "Cafe\u0301.png", "d.png", "d.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/E.jpg").touch()
    files = FileNames(tmp_path)

    expected = {
        "a.jpg": "a.jpg",
        "A.JPG": "A.JPG",
        "A.jpg": None,  # two files differ from it in case only
        "b.jpg": "B.Jpg",
        "caf\u00e9.PNG": "Cafe\u0301.png",
        "deep/e.jpg": "deep/E.jpg",
        "deeper/e.jpg": None,
        "x.jpg": None,
    }
    assert {name: files.find(name) for name in expected} == expected
    stems = {"b": "B.Jpg", "deep/e": "deep/E.jpg", "d": None, "caf\u00e9": "Cafe\u0301.png"}
    assert {stem: files.find_stem(stem) for stem in stems} == stems


def test_walk_is_sorted_recursive_and_follows_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    names = ("outside/x.jpg", "root/c.JPG", "root/b/2.png", "root/b/1.jpg", "root/.h.jpg")
    for name in (*names, "root/t.txt", "root/.hidden/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "link_out.jpg").symlink_to(outside / "x.jpg")
    (root / "link_in.jpg").symlink_to(root / "c.JPG")
    (root / "folder_out").symlink_to(outside)
    (root / "dangling.jpg").symlink_to(root / "nothing.jpg")

    skipped = Skipped()
    assert list(walk_pictures(root, skipped)) == [
        "b/1.jpg",
        "b/2.png",
        "c.JPG",
        "folder_out/x.jpg",
        "link_in.jpg",
        "link_out.jpg",
    ]
    assert skipped.counts == {"links to nothing": 1}


def test_walk_ends_where_links_run_in_circles(tmp_path: Path) -> None:
    for name in ("a", "b", "c/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "circle").symlink_to(tmp_path)
    for name, target in (("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("c/deep", "c")):
        (tmp_path / name / f"to_{target}").symlink_to(tmp_path / target)

    skipped = Skipped()
    found = list(walk_pictures(tmp_path, skipped))
    assert len(found) == len(set(found))
    assert {"a/1.jpg", "b/1.jpg", "c/deep/1.jpg"} <= set(found)
    assert skipped.counts["links to folders that are walked already"] >= 3


def test_walk_from_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert list(walk_pictures(Path())) == ["a/b/1.jpg"]
    assert list(walk_pictures(Path("a"))) == ["b/1.jpg"]


@pytest.mark.parametrize("files", [("packing.json",), ("manifest.json", "samples.npy")])
def test_packed_folders_are_no_pictures(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in ("a.jpg", "packed/sample.png", *(f"packed/{file}" for file in files)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    skipped = Skipped()

    assert list(walk_pictures(tmp_path, skipped)) == ["a.jpg"]
    assert skipped.counts == {"packed folders": 1}

    # The packed set may lie among its pictures, too.
    for file in (tmp_path / "packed").iterdir():
        file.rename(tmp_path / file.name)
    assert list(walk_pictures(tmp_path)) == ["a.jpg"]


def test_a_manifest_of_another_kind_hides_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/manifest.json").touch()
    (tmp_path / "site/sample.png").touch()
    assert list(walk_pictures(tmp_path)) == ["site/sample.png"]


def test_a_link_that_leads_to_itself_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "l.jpg").symlink_to("l.jpg")
    (tmp_path / "deep").symlink_to("deep")
    skipped = Skipped()

    assert list(walk_pictures(tmp_path, skipped)) == list_pictures(tmp_path) == ["a.jpg"]
    assert skipped.counts == {"links to nothing": 2}
