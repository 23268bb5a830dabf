"""Write a folder with a page that colors photos in the browser, with a generator of ours.

    index.html              the page; opened from the disk or from any web server
    demo.js                 Lab, resizing and the page's controls
    network-000.js, ...     the generator as ONNX
    runtime/                onnxruntime-web

Browsers let a page from the disk run scripts and read nothing else. So the network and the runtime
are scripts too, which hold their bytes as base64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from colorgan.demo.runtime import MODULE, RUNTIME, SCRIPT, WASM, runtime_files
from colorgan.files import check_output, replacing_folder
from colorgan.models.generator import check_onnx, export_onnx, require_onnx
from colorgan.models.model_config import ModelConfig, check_colors
from colorgan.models.model_folder import load_model
from colorgan.tasks.model_card import DRAWN, on_drawn_shapes

PAGE_SCRIPT = "demo.js"
LICENSE = "LICENSE.txt"  # onnxruntime-web's
# A multiple of 3, so that only the last part is padded; below Firefox's bound on data URLs, 32 MB.
PART_BYTES = 15 << 20


def write_demo(
    generator: Path, out: Path, runtime: Path | None, tell: Callable[[str], None]
) -> str:
    """Write the page's folder, whole or not at all; return lines about it.

    Args:
        generator: Folder of a generator.
        out: Folder to write; an older page is replaced.
        runtime: onnxruntime-web's package as a file; None fetches it.
        tell: Called with a line before each step that takes a while.

    Raises:
        UsageError: `out` holds something else, or the runtime cannot be had.
        ModelFolderError: `generator` is not a generator folder, it does not predict color, or the
            extra `onnx` is not installed.
    """
    # What a user may have to mend comes before what takes time.
    check_output(out, PAGE_SCRIPT)
    _, config = load_model(generator, "generator")
    check_colors(config, generator)
    require_onnx()
    library = runtime_files(runtime, tell)

    tell(f"Exporting {generator} to ONNX")
    with replacing_folder(out) as partial:
        network = _as_onnx(generator, partial / "model.onnx")
        _write_page(partial, config, network, library)
        num_bytes = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())

    text = f"{out}: a page of {num_bytes / 2**20:.0f} MiB; no network is needed to use it"
    return f"{text}\nNote: {DRAWN}" if on_drawn_shapes(config) else text


def _as_onnx(generator: Path, path: Path) -> bytes:
    """Return a generator as ONNX, checked against its network; `path` is used for a moment."""
    export_onnx(generator, path)
    check_onnx(path, generator)
    network = path.read_bytes()
    path.unlink()
    return network


def _write_page(
    folder: Path, config: ModelConfig, network: bytes, library: dict[str, bytes]
) -> None:
    # Bytes that a page from the disk could not fetch, as scripts that it may load.
    (folder / "runtime").mkdir()
    (folder / "runtime" / SCRIPT).write_bytes(library[SCRIPT])
    parts = {
        "module": _write_parts(folder, "runtime/module", library[MODULE]),
        "wasm": _write_parts(folder, "runtime/wasm", library[WASM]),
        "network": _write_parts(folder, "network", network),
    }

    package = files("colorgan.demo")
    (folder / PAGE_SCRIPT).write_bytes((package / PAGE_SCRIPT).read_bytes())
    (folder / "runtime" / LICENSE).write_bytes((package / LICENSE).read_bytes())
    # Undefined names fail here, not as a gap in the page.
    environment = Environment(
        loader=PackageLoader("colorgan.demo", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("index.html", "README.txt"):
        text = environment.get_template(name).render(
            config=config,
            drawn=DRAWN if on_drawn_shapes(config) else "",
            version=RUNTIME.version,
            runtime=f"runtime/{SCRIPT}",
            parts=parts,
            style=(package / "style.css").read_text(encoding="utf-8"),
        )
        (folder / name).write_text(text, encoding="utf-8")


def _write_parts(folder: Path, name: str, data: bytes) -> list[str]:
    """Write bytes as scripts that hand them to the page; return the scripts' names."""
    names: list[str] = []
    for start in range(0, len(data), PART_BYTES):
        text = base64.b64encode(data[start : start + PART_BYTES]).decode("ascii")
        names.append(f"{name}-{len(names):03d}.js")
        (folder / names[-1]).write_text(f'takePart("{text}")\n', encoding="ascii")
    return names
