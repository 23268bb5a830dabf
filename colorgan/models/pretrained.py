"""A model folder by its path, or by its name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2  # huggingface_hub speaks through it, and lets its errors pass
from huggingface_hub import hf_hub_download

from colorgan.errors import ModelFolderError
from colorgan.models.model_config import CONFIG, WEIGHTS

HUB_KEYWORDS = frozenset(("revision", "token", "cache_dir", "force_download", "local_files_only"))
# Of network and server; a name that cannot be one is a ValueError.
HUB_ERRORS = (httpx2.HTTPError, OSError, ValueError)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_model(name: str | Path, **keywords: Any) -> Path:
    """Return a model folder that is on disk, downloading its two files if `name` is on the hub.

    Nothing of it is executed.

    Args:
        name: A folder, or `user/name`; a folder comes first.
        keywords: huggingface_hub's own: revision, token, cache_dir, force_download,
            local_files_only.

    Raises:
        ModelFolderError: There is no such folder, the hub has no such model or cannot be reached,
            or another keyword was given.
    """
    unknown = keywords.keys() - HUB_KEYWORDS
    if unknown:
        raise ModelFolderError(
            f"from_pretrained takes no {', '.join(sorted(unknown))}: the folder says it all"
        )

    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelFolderError(f"{path} is a file: name the folder that holds {CONFIG}")

    # A Path, and what no name on the hub can look like, was meant as a folder.
    if isinstance(name, Path) or not HUB_NAME.fullmatch(name):
        raise ModelFolderError(
            f"{path}: no such folder; models are written by launcher/consolidate.py and "
            "launcher/finetune.py"
        )
    return _download(name, keywords)


def _download(name: str, keywords: dict[str, Any]) -> Path:
    try:
        files = [hf_hub_download(name, file, **keywords) for file in (CONFIG, WEIGHTS)]
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFolderError(
            f"{name}: no such folder, and no model of that name could be fetched from the Hugging "
            f"Face hub ({reason[0][:200]})"
        ) from None
    return Path(files[0]).parent
