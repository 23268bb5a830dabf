"""scikit-learn, an extra that only linear probes need; imported here alone, when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from colorgan.errors import UsageError
from shards.extras import install_command


def sklearn(name: str) -> Any:
    """Return a module of scikit-learn.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise UsageError(
            f"linear probes need scikit-learn: {install_command('transfer')}"
        ) from None


def check_sklearn() -> None:
    """Check, before long work, that scikit-learn is installed.

    Raises:
        UsageError: it is not.
    """
    sklearn("svm")
