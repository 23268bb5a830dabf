"""The page that colors photos in a browser: as `colorize` does, from the disk and from a server."""

from __future__ import annotations

import functools
import http.server
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import Page, chromium, needs_browser
from helpers.commands import Command
from helpers.http_server import serve, serving
from helpers.networks import small_config
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab

from colorgan.demo.npm import fetch
from colorgan.demo.page import write_demo
from colorgan.demo.runtime import MODULE, RUNTIME, SCRIPT, WASM, runtime_files
from colorgan.errors import ModelFolderError, UsageError
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from colorgan.tasks.model_card import DRAWN

SETTLED = "!document.querySelector('figure').hidden || document.querySelector('#status.error')"
SAID = "document.querySelector('#status').textContent"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a generator of the built-in sample, as drawn, whose colors are strong."""
    config = small_config("generator").model_copy(
        update={"recipe": {"data": {"train": ["data/sample/packed/train"]}}}
    )
    network = build_model(config)
    initialise(network, 3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.mul_(1e-3)  # so that the output is not all near 0

    folder = tmp_path_factory.mktemp("models") / "generator"
    save_model(folder, network, config)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetch onnxruntime-web's package once."""
    path = tmp_path_factory.mktemp("npm") / RUNTIME.tarball
    try:
        path.write_bytes(fetch(RUNTIME))
    except UsageError as error:
        pytest.skip(f"needs npm's registry: {error}")
    return path


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, generator: Path, package: Path
) -> tuple[Path, str]:
    """Write the page; return its folder and what was said of it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("demo") / "page"
    return out, write_demo(generator, out, package, print)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def served(folder: tuple[Path, str]) -> Iterator[str]:
    """Serve the page as `python -m http.server` does; yield its address."""
    handler = functools.partial(QuietHandler, directory=str(folder[0]))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def difference(first: Path, second: Path) -> float:
    """Return the mean CIEDE2000 of two files of one size."""
    assert pixels(first).shape == pixels(second).shape
    return float(deltaE_ciede2000(rgb2lab(pixels(first)), rgb2lab(pixels(second))).mean())


def colored_by_command(command: Command, generator: Path, photo: Path, out: Path) -> Path:
    text = command("colorize", "--generator", generator, "--out", out, photo)
    assert f"Note: {DRAWN}" in text
    return out / f"{photo.stem}.png"


def test_the_folder_says_how_to_use_it(folder: tuple[Path, str]) -> None:
    out, text = folder
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "index.html",
        "demo.js",
        "README.txt",
        "network-000.js",
        "runtime/LICENSE.txt",
        f"runtime/{SCRIPT}",
        "runtime/module-000.js",
        "runtime/wasm-000.js",
    }
    assert "python -m http.server" in (out / "README.txt").read_text()
    assert text.startswith(f"{out}: a page of ") and f"Note: {DRAWN}" in text


@needs_browser
@pytest.mark.parametrize("size", [None, (23, 17), (700, 40)], ids=["photo", "tiny", "wide"])
def test_a_chosen_photo_is_saved_as_colorize_writes_it(
    folder: tuple[Path, str],
    page: Page,
    command: Command,
    generator: Path,
    tmp_path: Path,
    size: tuple[int, int] | None,
) -> None:
    photo = tmp_path / "cat.png"
    image = Image.fromarray(data.chelsea())
    image = image.resize(size) if size else image
    image.save(photo)

    # From the disk, in a browser without any option that would allow more than usual.
    page.open((folder[0] / "index.html").as_uri())
    page.choose("input[type=file]", photo)
    page.wait_for(SETTLED)
    assert page.value(SAID).startswith("Done.")
    saved = page.download("button", tmp_path)
    assert saved.name == "cat-colored.png"

    expected = colored_by_command(command, generator, photo, tmp_path / "colored")
    assert difference(saved, expected) < 0.002
    # A page that left the photo grey, or as it was, would differ by far more.
    assert difference(photo, expected) > 5
    assert page.logged == []


@needs_browser
def test_colors_are_converted_as_scikit_image_does(folder: tuple[Path, str], page: Page) -> None:
    random = np.random.default_rng(0)
    rgb_N3 = random.integers(0, 256, (500, 3), dtype=np.uint8)
    ab_N2 = random.uniform(-90, 90, (500, 2))
    lab_N3 = rgb2lab(rgb_N3)

    page.open((folder[0] / "index.html").as_uri())
    lightness = page.value(f"{(rgb_N3 / 255).tolist()}.map(rgb => lightness(...rgb))")
    recolored = page.value(
        f"{np.hstack([rgb_N3, ab_N2]).tolist()}.map(([r, g, b, ...ab]) => "
        "{ const pixel = [r, g, b, 0]; recolor(pixel, pixel, 0, ...ab); return pixel })"
    )
    np.testing.assert_allclose(lightness, lab_N3[:, 0], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colors outside sRGB, which are clipped
        expected = 255 * lab2rgb(np.column_stack([lab_N3[:, 0], ab_N2]))
    assert np.abs(np.array(recolored)[:, :3] - expected).max() < 0.501
    assert {pixel[3] for pixel in recolored} == {255}


@needs_browser
def test_a_dropped_photo_on_a_phone(
    served: str, page: Page, command: Command, generator: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned to the right
    Image.fromarray(data.astronaut()[:300]).save(photo, quality=95, exif=exif)

    page.open(served, width=390)
    page.drop(".drop", photo)
    page.wait_for(SETTLED)
    assert page.value("document.documentElement.scrollWidth") == 390
    assert DRAWN in page.value("document.body.innerText")
    fetched = page.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith((served, "data:", "blob:"))] == []

    saved = page.download("button", tmp_path)
    expected = colored_by_command(command, generator, photo, tmp_path / "colored")
    assert pixels(saved).shape == (512, 300, 3)
    # Two JPEG decoders round differently.
    assert difference(saved, expected) < 0.5


@needs_browser
def test_the_slider_uncovers_colored_and_the_photo(
    folder: tuple[Path, str], page: Page, tmp_path: Path
) -> None:
    photo = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()[:60, :80]).save(photo)
    page.open((folder[0] / "index.html").as_uri())
    page.choose("input[type=file]", photo)
    page.wait_for(SETTLED)

    clips = "[...document.querySelectorAll('canvas')].map(each => each.style.clipPath).reverse()"
    shown = []
    page.value("document.querySelector('figure input').focus()")
    for key in ("Home", "End"):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        name = page.value("document.querySelector('figure input').ariaValueText")
        shown.append((name, page.value(clips)[:2]))
    assert shown == [
        ("grey", ["inset(0px 0px 0px 0%)", "inset(0px 0px 0px 0%)"]),
        ("as it was", ["inset(0px 0px 0px 100%)", "inset(0px 0px 0px 100%)"]),
    ]


@needs_browser
def test_what_is_no_photo_is_one_sentence(
    folder: tuple[Path, str], page: Page, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no photo")
    page.open((folder[0] / "index.html").as_uri())
    page.choose("input[type=file]", tmp_path / "notes.png")
    page.wait_for(SETTLED)
    assert page.value(SAID) == (
        "notes.png cannot be read by this browser: choose a JPEG, PNG or WebP photo"
    )


@needs_browser
def test_a_folder_copied_in_part_is_one_sentence(
    folder: tuple[Path, str], page: Page, tmp_path: Path
) -> None:
    for name in ("index.html", "demo.js"):
        (tmp_path / name).write_bytes((folder[0] / name).read_bytes())
    page.open((tmp_path / "index.html").as_uri())
    page.wait_for(SETTLED)
    assert page.value(SAID) == (f"runtime/{SCRIPT} cannot be loaded: copy the page's folder whole")


def test_another_registry_gives_the_same_files(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with serve(package.parent) as server:
        monkeypatch.setenv("npm_config_registry", f"{server.url}/")
        fetched = runtime_files(None, told.append)

    assert told == [f"Fetching {server.url}/onnxruntime-web/-/{RUNTIME.tarball} (33 MB)"]
    assert fetched == runtime_files(package, told.append)
    assert set(fetched) == {SCRIPT, MODULE, WASM}


@pytest.mark.parametrize(
    ("registry", "sentence"),
    [
        ("{server}", "cannot be fetched (Not Found)"),
        ("{server}/wrong", "its digest is not that of onnxruntime-web"),
        ("http://127.0.0.1:9", "cannot be fetched ("),
        ("registry", "cannot be fetched (unknown url type"),
    ],
)
def test_registries_that_do_not_answer(
    registry: str,
    sentence: str,
    command: Command,
    generator: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(tmp_path) as server:
        if registry.endswith("wrong"):
            (tmp_path / RUNTIME.tarball).write_bytes(b"another package")
        monkeypatch.setenv("npm_config_registry", registry.format(server=server.url))
        with pytest.raises(UsageError) as raised:
            command("demo", "--generator", generator, "--out", tmp_path / "out")

    assert sentence in str(raised.value)
    assert f"give it as --runtime {RUNTIME.tarball}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_told_before_anything_is_fetched(
    command: Command, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    with pytest.raises(ModelFolderError, match=r"needs onnxscript: pip install 'onnx"):
        command("demo", "--generator", generator, "--out", tmp_path / "out")


def test_mistakes(command: Command, generator: Path, tmp_path: Path) -> None:
    missing, other = tmp_path / "missing.tgz", tmp_path / "other.tgz"
    other.write_bytes(b"another package")
    out = tmp_path / "out"

    with pytest.raises(UsageError, match=r"--runtime .*cannot be read \(No such file"):
        command("demo", "--generator", generator, "--out", out, "--runtime", missing)
    with pytest.raises(UsageError, match=r"other.tgz: its digest is not that of onnxruntime-web"):
        command("demo", "--generator", generator, "--out", out, "--runtime", other)
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        command("demo", "--generator", tmp_path, "--out", out, "--runtime", other)
    with pytest.raises(UsageError, match="holds a model and is not replaced by a demo page"):
        command("demo", "--generator", generator, "--out", generator, "--runtime", other)
    assert not out.exists()
