"""One file of a URL into a stream, through fsspec: bounded in bytes and time, tried again, checked.

Used by shards/storage/remote.py. The only file that imports fsspec, and only when a URL is given; http(s) needs aiohttp
and s3 needs s3fs (`pip install colorgan[remote]`). How to reach a bucket (keys, region, endpoint) is taken from
where these libraries look for it: ~/.aws, AWS_* and FSSPEC_S3_* variables, ~/.netrc.
"""

import errno
import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from shards.errors import ManifestError

logger = logging.getLogger("shards")

SCHEMES = ("http", "https", "s3")
_LIBRARIES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}
_BLOCK = 4 << 20
_RETRIED_STATUS = (408, 425, 429)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)

Target = Callable[[], AbstractContextManager[IO[bytes]]]


class TransferError(FileNotFoundError):
    """A file that could not be fetched, for good; the message is a sentence with its URL.

    A FileNotFoundError, since that is what a reader does not try again (shards/loading/shard_set.py): all tries are over.
    """


@dataclass(frozen=True)
class RetryPolicy:
    """How long a fetch may take.

    Attributes:
        num_tries: Tries at one file, `wait_s` apart and doubling.
        stall_s: Seconds without a byte after which a try has failed.
        base_s: Seconds that all tries at one file may take, beside
        bytes_per_s: the time its size takes at this rate, the slowest that is accepted.
    """

    num_tries: int = 5
    wait_s: float = 1.0
    stall_s: float = 30.0
    base_s: float = 120.0
    bytes_per_s: float = 250_000.0

    def limit_s(self, size: int) -> float:
        """Seconds that a file of `size` bytes may take in all."""
        return self.base_s + size / self.bytes_per_s


@dataclass(frozen=True)
class Promise:
    """What a file must weigh and hash to; `sha256` None: at most `size` bytes of anything."""

    size: int
    sha256: str | None = None


def fetch_into(url: str, open_target: Target, promise: Promise, patience: RetryPolicy) -> None:
    """Write a URL's content; each try opens the target anew.

    Raises:
        TransferError: It is not there, is not what was promised, or the network fails for too long.
        OSError: The target cannot be written.
    """
    deadline = time.monotonic() + patience.limit_s(promise.size)
    for attempt in range(1, patience.num_tries + 1):
        try:
            with _open(url, patience) as source, open_target() as target:
                return _copy(source, target, promise, deadline)
        except Exception as error:  # aiohttp's, botocore's, fsspec's own: no common root
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            reason = _reason(error)
            wait_s = patience.wait_s * 2 ** (attempt - 1)
            last = attempt == patience.num_tries or time.monotonic() + wait_s > deadline
            if last or _final(error):
                raise TransferError(
                    f"{url}: cannot be fetched ({reason}; try {attempt})"
                ) from error
            logger.info("%s: %s; trying again in %g s", url, reason, wait_s)
            time.sleep(wait_s)
    raise AssertionError("num_tries is 1 at least")


def check_scheme(url: str) -> str:
    """The URL's scheme, once fsspec can serve it.

    Raises:
        ManifestError: Another scheme than http(s) and s3, or a library is missing.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise ManifestError(
            f"{url}: {scheme}:// is not supported; name a folder, or a URL of {', '.join(SCHEMES)}."
        )
    try:
        import_module("fsspec")
        import_module(_LIBRARIES.get(scheme, "fsspec"))
    except ImportError as error:
        raise ManifestError(
            f"{url}: {error.name or error} is not installed: pip install colorgan[remote]."
        ) from error
    return scheme


class _Broken(Exception):  # noqa: N818 (never leaves this file: a reason to try again)
    """A transfer that ended wrong."""


def _copy(source: Any, target: IO[bytes], promise: Promise, deadline: float) -> None:
    digest, size = hashlib.sha256(), 0
    while block := source.read(min(_BLOCK, promise.size - size + 1)):
        size += len(block)
        if size > promise.size:
            raise _Broken(f"more than the {promise.size} bytes that it may have")
        if time.monotonic() > deadline:
            raise _Broken(f"too slow: {size} of {promise.size} bytes in the time allowed")
        digest.update(block)
        target.write(block)
    if promise.sha256 is not None and size < promise.size:
        raise _Broken(f"broke off after {size} of {promise.size} bytes")
    if promise.sha256 not in (None, digest.hexdigest()):
        raise _Broken(
            f"its sha256 is {digest.hexdigest()[:12]}, the manifest says {str(promise.sha256)[:12]}"
        )


def _open(url: str, patience: RetryPolicy) -> Any:
    """A stream to read the URL from its start, without a request for its size where that can be spared."""
    fsspec = import_module("fsspec")
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        timeout = import_module("aiohttp").ClientTimeout(
            total=None, sock_connect=patience.stall_s, sock_read=patience.stall_s
        )
        system = fsspec.filesystem(scheme, client_kwargs={"timeout": timeout, "trust_env": True})
        return system.open(url, "rb", block_size=0, size=1)
    if scheme == "s3":
        limits = {
            "connect_timeout": patience.stall_s,
            "read_timeout": patience.stall_s,
            "retries": {"max_attempts": 1},
        }
        system = fsspec.filesystem(scheme, use_listings_cache=False, config_kwargs=limits)
        return system.open(url, "rb", block_size=_BLOCK, cache_type="none")
    return fsspec.filesystem(scheme).open(url, "rb")


def _final(error: Exception) -> bool:
    """Whether another try would end the same way."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _RETRIED_STATUS
    return isinstance(
        error, FileNotFoundError | PermissionError | ImportError | ValueError
    ) or _lacks_keys(error)


def _lacks_keys(error: Exception) -> bool:
    """Botocore's NoCredentialsError and its kin; a key that is refused is a PermissionError."""
    return type(error).__module__ == "botocore.exceptions" and "Credentials" in type(error).__name__


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status}"
    if isinstance(error, FileNotFoundError):
        return "no such file there"
    if isinstance(error, _Broken):
        return str(error)
    if isinstance(error, PermissionError) or _lacks_keys(error):
        return f"{error or 'refused'}; s3:// looks for keys in ~/.aws, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
