"""How to install what an extra of pyproject.toml adds, from a checkout and from a wheel.

No package index has `colorgan`: `pip install colorgan[onnx]` would find another package, or none.
"""

from __future__ import annotations

from importlib import metadata


def install_command(extra: str) -> str:
    """Return the command that installs an extra's packages by their own names."""
    try:
        required = metadata.requires("colorgan") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return f"pip install '.[{extra}]' in colorgan's checkout"

    marker = f'extra == "{extra}"'
    packages = [line.split(";")[0].strip() for line in required if line.endswith(marker)]
    return " ".join(["pip install", *(f"'{package}'" for package in packages)])
