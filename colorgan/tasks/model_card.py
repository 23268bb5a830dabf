"""The model card that consolidation writes beside the weights: README.md, as the hub shows it.

It tells what `evaluate --out` has written beside the model or in its run, if of these very weights.
A card that a user has written, or has freed of its mark, is never touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from colorgan.evaluation.generator_scores import scores_table
from colorgan.evaluation.reconstruction_scores import reconstruction_text
from colorgan.evaluation.record import SavedEvaluation, read_evaluations
from colorgan.files import CARD, replacing
from colorgan.models.model_config import ModelConfig, read_config, weights_digest
from colorgan.runs.log import read_log

MARK = "<!-- written by colorgan; without this line the card is yours and is kept as it is -->"
PICTURE = "validation.png"
EVALUATIONS, RECIPE = "## Evaluations", "## Recipe"
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
        folder: Of the model, with its weights.
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
    evaluations = evaluations_text(config.kind, evaluations_of(folder, run))
    text = card_text(config, scores, pictured, evaluations)
    with replacing(card) as partial:
        partial.write_text(text, encoding="utf-8")
    return True


def renew_evaluations(folder: Path) -> list[Path]:
    """Put the evaluations beside a model folder into its card; return their folders.

    Nothing is changed where there is none, no card, or a card of the user's own.

    Raises:
        ModelFolderError: It is not a model folder.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = evaluations_of(folder, folder.parent)
    if MARK not in text or not found:
        return []

    # Only the evaluations: the rest came from a run, which need not be on this machine.
    section = evaluations_text(read_config(folder).kind, found)
    parts = [part for part in re.split(r"\n\n(?=## )", text) if not part.startswith(EVALUATIONS)]
    places = [index for index, part in enumerate(parts) if part.startswith(RECIPE)]
    parts.insert(places[0] if places else len(parts), section)
    with replacing(card) as partial:
        partial.write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return [evaluation.path for evaluation in found]


def evaluations_of(folder: Path, run: Path) -> list[SavedEvaluation]:
    """Return what `evaluate` has written of a model folder's weights, in its run or beside it.

    Args:
        folder: Of the model.
        run: The run folder it comes from, or another one to look in.

    Raises:
        ModelFolderError: `folder` is not a model folder.
    """
    # As a rule the two are one.
    places = {place.resolve(): place for place in (run, folder.parent)}
    saved: list[SavedEvaluation] = []
    for place in places.values():
        saved += read_evaluations(place)[0]  # a damaged record claims nothing

    if not saved:
        return []
    # Other weights' scores would be a false claim.
    digest = weights_digest(folder)
    return [evaluation for evaluation in saved if evaluation.weights_sha256 == digest]


def evaluations_text(kind: str, evaluations: Iterable[SavedEvaluation]) -> str:
    """Return the card's section of evaluations, a set after the other; empty without any."""
    parts = []
    for evaluation in evaluations:
        # Names alone, as everywhere in the card.
        names = ", ".join(Path(folder).name for folder in evaluation.data)
        heading = f"### {names} ({evaluation.inference} inference)"
        parts.append(f"{heading}\n\n{_score_rows(kind, evaluation.scores)}")
    # Two folders with the same scores of the same set say one thing.
    return "\n\n".join([EVALUATIONS, *dict.fromkeys(parts)]) if parts else ""


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


def card_text(
    config: ModelConfig, scores: Mapping[str, float], with_picture: bool, evaluations: str = ""
) -> str:
    """Return the card: what the model is, how to load it, scores, recipe, data and licence.

    Args:
        config: Of the model.
        scores: Of its validation; empty for none.
        with_picture: Whether the validation's picture is in the folder.
        evaluations: As `evaluations_text` writes them.
    """
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
    if evaluations:
        parts.append(evaluations)

    recipe = {key: value for key, value in config.recipe.items() if key not in PRIVATE_SECTIONS}
    # The one path of a section that is otherwise worth showing.
    if isinstance(network := recipe.get("network"), dict):
        recipe["network"] = {k: v for k, v in network.items() if k != "encoder_weights"}
    parts += [
        f"{RECIPE}\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False).strip()}\n```",
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
    return _score_rows(config.kind, scores)


def _score_rows(kind: str, scores: Mapping[str, float]) -> str:
    """Return the scores of a set as Markdown."""
    if kind == "generator" and "grey_psnr" in scores:
        about = f"On {scores['images']:.0f} held-out images, beside the same images left grey:"
        return f"{about}\n\n```\n{scores_table(scores)}\n```"
    if kind == "generator" and "luminance_l1" in scores:
        return f"```\n{reconstruction_text(scores)}\n```"

    # Classes by the hundred belong to the report; the means are what a reader looks for.
    rows = [f"| {name} | {value:.4g} |" for name, value in scores.items() if "/" not in name]
    return "\n".join(["| score | held-out |", "|---|---|", *rows])
