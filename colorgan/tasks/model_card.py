"""The model card that consolidation writes beside the weights: README.md, as the hub shows it.

A card that a user has written, or has freed of its mark, is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from colorgan.evaluation.generator_scores import scores_table
from colorgan.files import CARD, replacing
from colorgan.models.model_folder import ModelConfig
from colorgan.runs.log import read_log

MARK = "<!-- written by colorgan; without this line the card is yours and is kept as it is -->"
PICTURE = "validation.png"
# What was learned and how; the machine's paths and launch are nobody else's business.
PRIVATE_SECTIONS = {"run", "data", "output", "launch", "dry_run", "init", "resume_from"}
CLASS_NAMES = {
    "classifier": "Classifier",
    "segmenter": "Segmenter",
    "detector": "Detector",
}
DRAWN = (
    "This generator was trained on drawn shapes, the built-in sample: it shows that everything "
    "works, and colors photos badly."
)


def write_card(folder: Path, run: Path, config: ModelConfig) -> bool:
    """Write a model folder's card, with the scores and picture of these very weights if there are.

    Args:
        folder: Of the model, already there.
        run: The run folder it comes from.
        config: Of the model.

    Returns:
        Whether it was written; False where a card of the user's own stands.
    """
    card = folder / CARD
    # Undecodable bytes are a user's card, too: it stays.
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return False

    # Validation takes the average where there is one: raw weights beside it were never scored.
    validated = config.weights == "average" or not config.recipe.get("ema_half_life_images")
    scores = last_scores(run, config.images_seen) if validated else {}
    picture = run / "pictures" / f"images-{config.images_seen:012d}.png"
    pictured = validated and config.kind == "generator" and picture.is_file()
    if pictured:
        shutil.copyfile(picture, folder / PICTURE)
    text = card_text(config, scores, pictured)
    with replacing(card) as partial:
        partial.write_text(text, encoding="utf-8")
    return True


def last_scores(run: Path, images_seen: int) -> dict[str, float]:
    """Return the scores of the validation at exactly that many images; empty if there was none."""
    try:
        lines = read_log(run)
    except OSError:
        return {}

    # Another checkpoint's scores would be a false claim.
    scored = [
        line.get("values")
        for line in lines
        if line["kind"] == "validate" and line["images"] == images_seen
    ]
    values = scored[-1] if scored else None
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def on_drawn_shapes(config: ModelConfig) -> bool:
    """Return whether a model was trained on the built-in sample alone."""
    data = config.recipe.get("data")
    folders = (data.get("train") if isinstance(data, dict) else None) or []
    return bool(folders) and all(str(path).startswith("data/sample/") for path in folders)


def card_text(config: ModelConfig, scores: Mapping[str, float], with_picture: bool) -> str:
    """Return the card: what the model is, how to load it, scores, recipe, data and licence."""
    side, width = config.picture_size, config.architecture.width
    about = (
        f"A {config.kind} for pictures of {side} x {side}, width {width}: the {config.weights} "
        f"weights after {config.images_seen:,} images."
    )
    parts = [
        "---\nlibrary_name: colorgan\ntags: [colorization, self-supervised]\n---",
        MARK,
        f"# {config.kind.capitalize()}, {side} x {side}",
        about,
        *([DRAWN] if on_drawn_shapes(config) else []),
        f"## How to load it\n\n```python\n{_loading(config.kind)}\n```",
        f"## Scores\n\n{_scores_text(config, scores)}",
    ]
    if with_picture and config.kind == "generator":
        parts.append(f"![Held-out images as this run colored them]({PICTURE})")

    recipe = {key: value for key, value in config.recipe.items() if key not in PRIVATE_SECTIONS}
    # The one path of a section that is otherwise worth showing.
    if isinstance(network := recipe.get("network"), dict):
        recipe["network"] = {k: v for k, v in network.items() if k != "encoder_weights"}
    parts += [
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False).strip()}\n```",
        f"## Data\n\nDigest of the training set's manifest: `{config.data_digest or 'unknown'}`.",
        "## Licence\n\nThe code is MIT. No licence of the weights is given here: name one that the "
        "terms of the training photos allow, in this card's header (`license:`).",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(kind: str) -> str:
    photo = 'Image.open("photo.jpg")'
    if kind == "generator":
        return (
            "from PIL import Image\nfrom colorgan import colorize\n\n"
            f'colored = colorize({photo}, "FOLDER or user/name")'
        )
    name = CLASS_NAMES.get(kind, "Encoder")
    return (
        f"from PIL import Image\nfrom colorgan import {name}\n\n"
        f'model = {name}.from_pretrained("FOLDER or user/name")\nanswer = model.predict({photo})'
    )


def _scores_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    if not scores:
        return "Not evaluated on held-out images at this checkpoint."
    if config.kind == "generator" and "grey_psnr" in scores:
        about = f"On {scores['images']:.0f} held-out images, beside the same images left grey:"
        return f"{about}\n\n```\n{scores_table(scores)}\n```"

    # Classes by the hundred belong to the report; the means are what a reader looks for.
    rows = [f"| {name} | {value:.4g} |" for name, value in scores.items() if "/" not in name]
    return "\n".join(["| score | held-out |", "|---|---|", *rows])
