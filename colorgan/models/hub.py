"""Upload a model folder to the Hugging Face hub, where `from_pretrained` finds it by name."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from colorgan.errors import ModelFolderError, UsageError
from colorgan.files import CARD
from colorgan.models.model_config import CONFIG, WEIGHTS, read_config
from colorgan.models.model_folder import load_model
from colorgan.models.pretrained import HUB_ERRORS, HUB_NAME

KINDS = ("generator", "encoder", "classifier", "segmenter", "detector")


def push_model(folder: Path, name: str, *, private: bool, title: str) -> str:
    """Upload a model folder's weights, config, card and pictures; return the model's address.

    Paths in the config's recipe become names: they are of the machine that trained.

    Args:
        folder: Written by consolidation, fine-tuning or `import_encoder`.
        name: `user/name`; made if it does not exist.
        private: Whether a new model is hidden from others; an existing one stays as it is.
        title: Of the commit.

    Raises:
        ModelFolderError: The folder is not a whole model.
        UsageError: `name` is no name on the hub, the hub cannot be reached, or it refuses.
    """
    if not HUB_NAME.fullmatch(name):
        raise UsageError(f"--repo {name!r}: a name on the hub is USER/NAME")
    if not (folder / CARD).is_file():
        raise ModelFolderError(
            f"{folder} has no {CARD}, the card that says what the model is: write it, or let "
            "launcher/consolidate.py --run RUN write the folder again"
        )
    # Loaded, so that nothing is published that nobody can load.
    load_model(folder, *KINDS)

    operations = [
        CommitOperationAdd(CONFIG, _public_config(folder)),
        *(CommitOperationAdd(path.name, path) for path in _files(folder)),
    ]
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.create_commit(name, operations, commit_message=title)
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"{name} was not uploaded to {api.endpoint} ({reason[0][:200]}): check the network, "
            "and the token with `hf auth login` or HF_TOKEN"
        ) from None
    return str(done.repo_url)


def _files(folder: Path) -> list[Path]:
    """Return what is uploaded beside the config; other files of the folder stay where they are."""
    return [folder / WEIGHTS, folder / CARD, *sorted(folder.glob("*.png"))]


def _public_config(folder: Path) -> bytes:
    config = read_config(folder)
    plain = config.model_copy(update={"recipe": _without_folders(config.recipe)})
    return (json.dumps(plain.model_dump(mode="json"), indent=1) + "\n").encode()


def _without_folders(value: Any) -> Any:
    """Return nested settings with the last part of every path."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return PurePosixPath(value).name if isinstance(value, str) and "/" in value else value
