"""Copies one file of a URL into a stream through fsspec: bounded, retried and checked.

Used by shards/storage/remote.py. The only file that imports fsspec, and only when a URL is given.
Each scheme needs a library: http(s) aiohttp, s3 s3fs, gs gcsfs, hf huggingface_hub. Keys, region
and endpoint of a bucket come from where these libraries look for them: ~/.aws, AWS_* and
FSSPEC_S3_* variables, Google's application default credentials, the token of `hf auth login`,
~/.netrc. Without keys, s3 and gs buckets and hf repositories are read as the public reads them.
"""

from __future__ import annotations

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
from shards.extras import install_command
from shards.storage.retries import RetryPolicy

logger = logging.getLogger("shards")

SCHEMES = ("http", "https", "s3", "gs", "hf")
_LIBRARIES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
}
_BLOCK = 4 << 20
_RETRIED_STATUS = (408, 425, 429)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)

Target = Callable[[], AbstractContextManager[IO[bytes]]]


class TransferError(FileNotFoundError):
    """A file that could not be fetched in any try; the message is a sentence with its URL.

    A FileNotFoundError, because readers do not retry those (shards/loading/members.py).
    """


@dataclass(frozen=True)
class Promise:
    """The size and hash that a fetched file must have.

    Attributes:
        size: Bytes; with `sha256` None the most that the file may have.
        sha256: Of the content; None: any content.
    """

    size: int
    sha256: str | None = None


class _BrokenTransferError(Exception):
    """A transfer that ended wrong and is worth another try; never leaves this file."""


def fetch_into(url: str, open_target: Target, promise: Promise, retry: RetryPolicy) -> None:
    """Write a URL's content; each try opens the target anew.

    Raises:
        TransferError: The file is not there, is not what was promised, or every try failed.
        OSError: The target cannot be written.
    """
    # Over all tries: a server of a byte per second never stalls and never ends.
    deadline = time.monotonic() + retry.limit_s(promise.size)

    for attempt in range(1, retry.num_tries + 1):
        try:
            with _open(url, retry) as source, open_target() as target:
                return _copy(source, target, promise, deadline)
        except Exception as error:  # aiohttp, botocore and fsspec share no root
            # This machine's disk: trying the network again would not help.
            if isinstance(error, OSError) and error.errno in _DISK:
                raise

            reason, pause_s = _reason(error), retry.pause_s(attempt)
            last = attempt == retry.num_tries or time.monotonic() + pause_s > deadline
            if last or _is_final(error):
                message = f"{url}: cannot be fetched ({reason}; try {attempt})"
                raise TransferError(message) from error

            logger.info("%s: %s; retrying in %g s", url, reason, pause_s)
            time.sleep(pause_s)

    raise AssertionError("num_tries is at least 1")


def check_scheme(url: str) -> str:
    """Return the URL's scheme once fsspec can serve it.

    Raises:
        ManifestError: An unsupported scheme, or a library is missing.
    """
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        supported = ", ".join(f"{each}://" for each in SCHEMES)
        raise ManifestError(
            f"{url}: {scheme}:// is not supported; give a folder, or a URL that starts with "
            f"{supported}."
        )

    try:
        import_module("fsspec")
        import_module(_LIBRARIES.get(scheme, "fsspec"))
    except ImportError as error:
        extra = "gs" if scheme == "gs" else "remote"
        raise ManifestError(
            f"{url}: {error.name or error} is not installed: {install_command(extra)}."
        ) from error
    return scheme


def scheme_of(url: str) -> str:
    """Return what comes before ://, in lower case."""
    return url.partition("://")[0].lower()


def _copy(source: Any, target: IO[bytes], promise: Promise, deadline: float) -> None:
    digest, size = hashlib.sha256(), 0

    # One byte more than promised is asked for, so that a longer file is noticed.
    while block := source.read(min(_BLOCK, promise.size - size + 1)):
        size += len(block)
        if size > promise.size:
            raise _BrokenTransferError(f"more than the {promise.size} bytes that it may have")
        if time.monotonic() > deadline:
            raise _BrokenTransferError(
                f"too slow: {size} of {promise.size} bytes in the time allowed"
            )
        digest.update(block)
        target.write(block)

    if promise.sha256 is None:
        return
    if size < promise.size:
        raise _BrokenTransferError(f"broke off after {size} of {promise.size} bytes")
    if digest.hexdigest() != promise.sha256:
        raise _BrokenTransferError(
            f"its sha256 is {digest.hexdigest()[:12]}, the manifest has {promise.sha256[:12]}"
        )


def _open(url: str, retry: RetryPolicy) -> Any:
    """Open a URL for reading, without asking for its size first where that can be spared."""
    fsspec = import_module("fsspec")
    scheme = scheme_of(url)

    if scheme in ("http", "https"):
        options = {"timeout": _stall_limit(retry), "trust_env": True}
        system = fsspec.filesystem(scheme, client_kwargs=options)
        return system.open(url, "rb", block_size=0, size=1)

    if scheme == "s3":
        try:
            return _open_s3(url, retry, anonymous=False)
        except Exception as error:
            if not _lacks_keys(error):
                raise
        # Only after a try with keys: with them a public bucket may be closed to the anonymous.
        return _open_s3(url, retry, anonymous=True)

    if scheme == "gs":
        return _open_gs(url, retry)
    return fsspec.filesystem(scheme, use_listings_cache=False).open(url, "rb", block_size=0)


def _stall_limit(retry: RetryPolicy) -> Any:
    return import_module("aiohttp").ClientTimeout(
        total=None, sock_connect=retry.stall_s, sock_read=retry.stall_s
    )


def _open_s3(url: str, retry: RetryPolicy, *, anonymous: bool) -> Any:
    limits = {
        "connect_timeout": retry.stall_s,
        "read_timeout": retry.stall_s,
        # Retried here, by one policy; botocore would multiply the tries.
        "retries": {"max_attempts": 1},
    }
    system = import_module("fsspec").filesystem(
        "s3", anon=anonymous, use_listings_cache=False, config_kwargs=limits
    )
    return system.open(url, "rb", block_size=_BLOCK, cache_type="none")


def _open_gs(url: str, retry: RetryPolicy) -> Any:
    # Not the subclass that fsspec would take: it asks for each bucket's kind by gRPC, which needs
    # credentials even for a public bucket, and logs that it has none.
    core = import_module("gcsfs.core")
    # It prints a traceback of every failure, which is told here in a sentence.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    system = core.GCSFileSystem(requests_timeout=_stall_limit(retry), use_listings_cache=False)
    return system.open(url, "rb", block_size=_BLOCK, cache_type="none")


def _is_final(error: Exception) -> bool:
    """Return whether another try would end the same way."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _RETRIED_STATUS

    final = FileNotFoundError | PermissionError | ImportError | ValueError
    return isinstance(error, final) or _lacks_keys(error)


def _lacks_keys(error: Exception) -> bool:
    """Recognize refused or missing keys; most libraries raise a PermissionError, these do not."""
    kind = type(error)
    if kind.__module__ == "gcsfs.retry":
        return _status(error) == 401
    # gcsfs raises a bare OSError where it is forbidden to read.
    if kind is OSError and str(error).startswith("Forbidden: "):
        return True
    return kind.__module__ == "botocore.exceptions" and "Credentials" in kind.__name__


def _status(error: Exception) -> int | None:
    """Return the HTTP status of aiohttp's, huggingface_hub's or gcsfs' error, if it has one."""
    response = getattr(error, "response", None)
    # One after the other: aiohttp warns whoever reads its old name, `code`.
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file there"
    if isinstance(error, PermissionError) or _lacks_keys(error):
        text = " ".join(str(error).split()) or "refused"
        return (
            f"{text}; s3:// looks for keys in ~/.aws, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, gs:// in Google's application default credentials"
        )
    status = _status(error)
    if status is not None:
        return f"HTTP {status}"
    if isinstance(error, _BrokenTransferError):
        return str(error)

    kind = type(error).__name__
    return f"{kind}: {error}" if str(error) else kind
