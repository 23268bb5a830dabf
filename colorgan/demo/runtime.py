"""onnxruntime-web, the library that runs networks in browsers, from its package on npm.

One pinned version. Of its builds the smallest is taken, WebAssembly on one thread, which needs no
special server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from colorgan.demo.npm import Package, fetch, files_of
from colorgan.errors import UsageError

RUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    sha512="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    num_bytes=33_106_585,
)
SCRIPT = "ort.wasm.min.js"
MODULE = "ort-wasm-simd-threaded.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
PATHS = {f"dist/{name}": name for name in (SCRIPT, MODULE, WASM)}


def runtime_files(tarball: Path | None, tell: Callable[[str], None]) -> dict[str, bytes]:
    """Return the runtime's files by name: SCRIPT, MODULE and WASM.

    Args:
        tarball: The package as a file; None fetches it.
        tell: Called with a line before the package is fetched.

    Raises:
        UsageError: The package cannot be read or reached, or is not this version's.
    """
    # Either source ends in the same check: a file that was copied by hand is trusted no more.
    try:
        if tarball is not None:
            source, content = str(tarball), _read(tarball)
        else:
            tell(f"Fetching {RUNTIME.url} ({RUNTIME.num_bytes / 1e6:.0f} MB)")
            source, content = RUNTIME.url, fetch(RUNTIME)
        files = files_of(RUNTIME, content, list(PATHS), source)
    except UsageError as error:
        raise UsageError(
            f"{error}; where npm can be reached, `npm pack {RUNTIME.name}@{RUNTIME.version}` "
            f"writes {RUNTIME.tarball}: give it as --runtime {RUNTIME.tarball}"
        ) from None
    return {name: files[path] for path, name in PATHS.items()}


def _read(tarball: Path) -> bytes:
    try:
        with tarball.open("rb") as file:
            return file.read(RUNTIME.num_bytes + 1)
    except OSError as error:
        raise UsageError(
            f"--runtime {tarball}: cannot be read ({error.strerror or error})"
        ) from None
