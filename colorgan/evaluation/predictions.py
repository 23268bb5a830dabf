"""Outputs of a fine-tuned model over a set, and rows of all ranks in the set's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from colorgan.data import Batch
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.models.modes import dropout_keys, set_dropout_keys

Row = TypeVar("Row")

# A batch with the model's output for its luminance, float32.
Prediction = tuple[Batch, Tensor]


def predictions(model: nn.Module, batches: Iterable[Batch], seed: int) -> Iterator[Prediction]:
    """Yield each batch with the model's output.

    Args:
        model: In eval mode, under `torch.inference_mode`.
        batches: Of this rank.
        seed: Of the dropout masks of "paper" inference.
    """
    for batch in batches:
        # By position in the set: "paper" inference then gives the same scores on any number of
        # ranks.
        set_dropout_keys(model, dropout_keys(seed, batch.positions_B))
        yield batch, model(batch.lab_B3HW[:, :1]).float()


def rows_in_order(ranks: Ranks, rows: Sequence[tuple[int, Row]]) -> tuple[list[int], list[Row]]:
    """Return all ranks' sample numbers, ascending, and their rows. Called on all ranks.

    The same on all.

    Args:
        ranks: This process's place among the ranks.
        rows: This rank's rows with their sample numbers; a number that comes twice counts once.

    Raises:
        TrainingError: No rank has a row.
    """
    # The last rank's share of a set may be filled up with samples that another rank has, too.
    by_sample: dict[int, Row] = {}
    for each in ranks.gather(list(rows)):
        by_sample.update(each)

    if not by_sample:
        raise TrainingError(
            "none of the images to score could be read: check them with launcher/pack.py --verify "
            "DIR"
        )
    ids = sorted(by_sample)
    return ids, [by_sample[sample_id] for sample_id in ids]


def percent(share: float) -> str:
    """Return a share in [0, 1] as text in percent; "undefined" for NaN."""
    # NaN is the one value that does not equal itself.
    return f"{100 * share:.2f} %" if share == share else "undefined"
