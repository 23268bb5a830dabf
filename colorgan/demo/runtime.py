"""onnxruntime-web, the library that runs networks in browsers, from its package on npm.

One pinned version: its files are read only after the package's digest was found to be npm's. Of its
builds the smallest is taken, WebAssembly on one thread, which needs no special server.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from colorgan.errors import UsageError

VERSION = "1.30.0"
TARBALL = f"onnxruntime-web-{VERSION}.tgz"
# As `npm view onnxruntime-web@VERSION dist.integrity` prints it.
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
NUM_BYTES = 33_106_585
REGISTRY = "https://registry.npmjs.org"
TIMEOUT_S = 60.0

SCRIPT = "ort.wasm.min.js"
MODULE = "ort-wasm-simd-threaded.mjs"
WASM = "ort-wasm-simd-threaded.wasm"


def runtime_files(tarball: Path | None, tell: Callable[[str], None]) -> dict[str, bytes]:
    """Return the runtime's files by name: SCRIPT, MODULE and WASM.

    Args:
        tarball: The package as a file; None fetches it from the registry that the environment
            variable `npm_config_registry` names, or from npm's own.
        tell: Called with a line before the package is fetched.

    Raises:
        UsageError: The package cannot be read or reached, or is not this version's.
    """
    if tarball is not None:
        source, package = str(tarball), _read(tarball)
    else:
        registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112 (npm's own name)
        source = f"{registry.rstrip('/')}/onnxruntime-web/-/{TARBALL}"
        tell(f"Fetching {source} ({NUM_BYTES / 1e6:.0f} MB)")
        package = _fetch(source)

    # Before anything is unpacked: behind the digest there is one known archive, no hostile one.
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != INTEGRITY:
        raise UsageError(
            f"{source}: its digest is not that of onnxruntime-web {VERSION}; {_advice()}"
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        # Read, not extracted: no name of the archive becomes a path of this machine.
        for name in (SCRIPT, MODULE, WASM):
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            files[name] = member.read()
    return files


def _read(tarball: Path) -> bytes:
    try:
        with tarball.open("rb") as file:
            # One byte more than it has: a longer file fails by its digest, unread.
            return file.read(NUM_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"--runtime {tarball}: cannot be read ({error.strerror or error}); {_advice()}"
        ) from None


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            package: bytes = response.read(NUM_BYTES + 1)
    # ValueError: the registry's name is not a URL.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"{url}: cannot be fetched ({reason}); {_advice()}") from None
    return package


def _advice() -> str:
    return (
        f"where npm can be reached, `npm pack onnxruntime-web@{VERSION}` writes {TARBALL}: give it "
        f"as --runtime {TARBALL}"
    )
