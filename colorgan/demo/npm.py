"""Files of a package on npm, of one version: fetched over https, and read only if the digest fits.

Needs no node, and nothing beyond Python's own library: the documentation's build uses it too.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from colorgan.errors import UsageError

REGISTRY = "https://registry.npmjs.org"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Package:
    """One version of a package.

    Attributes:
        name: On npm.
        version: Exact.
        sha512: Of its tarball, in base64; `npm view NAME@VERSION dist.integrity` prints it.
        num_bytes: Of its tarball.
    """

    name: str
    version: str
    sha512: str
    num_bytes: int

    @property
    def tarball(self) -> str:
        """Return its file's name, as `npm pack` writes it."""
        return f"{self.name}-{self.version}.tgz"

    @property
    def url(self) -> str:
        """Return its address: in the registry of `npm_config_registry`, else in npm's own."""
        registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112 (npm's name)
        return f"{registry.rstrip('/')}/{self.name}/-/{self.tarball}"


def fetch(package: Package) -> bytes:
    """Return a package's tarball, unchecked.

    Raises:
        UsageError: The registry cannot be reached, or does not have it.
    """
    try:
        with urllib.request.urlopen(package.url, timeout=TIMEOUT_S) as response:
            # One byte more than it has: a longer answer fails by its digest, unread.
            tarball: bytes = response.read(package.num_bytes + 1)
    # ValueError: the registry's name is not a URL.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # a refusal is an answer too, and holds its connection
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"{package.url}: cannot be fetched ({reason})") from None
    return tarball


def files_of(
    package: Package, tarball: bytes, names: Sequence[str], source: str
) -> dict[str, bytes]:
    """Return some files of a package by their paths in it.

    Args:
        package: Which one it must be.
        tarball: Its bytes.
        names: Paths of files that it has.
        source: Where the bytes come from, for the error.

    Raises:
        UsageError: It is not this package's tarball.
    """
    # Before anything is unpacked: behind the digest there is one known archive, no hostile one.
    if base64.b64encode(hashlib.sha512(tarball).digest()).decode() != package.sha512:
        raise UsageError(f"{source}: its digest is not that of {package.name} {package.version}")

    files = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        # Read, not extracted: no name of the archive becomes a path of this machine.
        for name in names:
            member = archive.extractfile(f"package/{name}")
            assert member is not None
            files[name] = member.read()
    return files
