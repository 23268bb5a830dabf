"""The best model of a fine-tuning run by its task's score, kept beside the last one.

RUN/best/     a model folder, and best.json: its score, and how many validations were no better
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from colorgan.distributed.ranks import Ranks
from colorgan.files import read_json, replacing
from colorgan.models.model_config import ModelConfig
from colorgan.models.model_folder import save_model

BEST, RECORD = "best", "best.json"


class BestRecord(BaseModel):
    """The record in best.json.

    Attributes:
        score: Name of the score.
        value: Its best value, a share in [0, 1].
        images_seen: When it was reached.
        validated_images: At the last validation.
        validations_since: Validations after the best one.
    """

    model_config = ConfigDict(frozen=True)

    score: str
    value: float
    images_seen: int
    validated_images: int
    validations_since: int = 0


@dataclass
class BestModel:
    """Keeps the best model of a run; the same on all ranks.

    Attributes:
        folder: RUN/best.
        ranks: This process's place among the ranks.
        names: Names of the score, the first that an evaluation has.
        record: Of the best model so far; None before the first validation.
    """

    folder: Path
    ranks: Ranks
    names: Sequence[str]
    record: BestRecord | None = None

    def restore(self) -> None:
        """Read the record of an earlier start. Called on all ranks; rank 0 reads."""
        # All ranks decide together when to stop, so they all need what only rank 0 may have on its
        # disk.
        self.record = self.ranks.gather(_read(self.folder) if self.ranks.main else None)[0]

    def consider(
        self,
        scores: Mapping[str, float],
        images_seen: int,
        model: nn.Module,
        config: Callable[[], ModelConfig],
    ) -> None:
        """Keep the model if it scores better than all before it. Called on all ranks.

        A validation that was judged before, as after a resume, is not judged again; an undefined
        score is never the best.
        """
        name = next((each for each in self.names if each in scores), None)
        old = self.record
        # A resumed run may validate the same point again: counted twice, it would use up the
        # patience.
        if name is None or (old is not None and images_seen <= old.validated_images):
            return

        value = scores[name]
        # NaN, of a set without any class, would stay the best for good: nothing compares above it.
        if not math.isnan(value) and (old is None or value > old.value):
            self.record = BestRecord(
                score=name, value=value, images_seen=images_seen, validated_images=images_seen
            )
            # The model before its record: a kill between them leaves a better model, never a false
            # claim.
            self._on_main(lambda: save_model(self.folder, model, config()))
        elif old is not None:
            counted = {
                "validated_images": images_seen,
                "validations_since": old.validations_since + 1,
            }
            self.record = old.model_copy(update=counted)
        self._on_main(self._write)

    def is_stale(self, patience: int, images_seen: int) -> bool:
        """Return whether the last validations up to `images_seen` were no better than one before.

        Args:
            patience: How many; 0 is never reached.
            images_seen: A record that is ahead of it, as after a resume, does not count.
        """
        record = self.record
        # The run went back to an older checkpoint: what came after it has not happened.
        if not patience or record is None or record.validated_images > images_seen:
            return False
        return record.validations_since >= patience

    def may_end(self, patience: int) -> bool:
        """Return whether the next validation may be the last that `patience` allows."""
        record = self.record
        return bool(patience) and record is not None and record.validations_since + 1 >= patience

    def text(self) -> str:
        """Return a line about the best model, "" before the first validation."""
        if self.record is None:
            return ""
        value = f"{100 * self.record.value:.2f} %"
        seen = f"{self.record.images_seen:,} images"
        return f"best {self.record.score} {value} at {seen}: {self.folder}"

    def _on_main(self, work: Callable[[], None]) -> None:
        self.ranks.on_all_ranks(lambda: work() if self.ranks.main else None)

    def _write(self) -> None:
        if self.record is None:
            return
        with replacing(self.folder / RECORD) as partial:
            partial.write_text(self.record.model_dump_json(indent=1) + "\n")


def _read(folder: Path) -> BestRecord | None:
    path = folder / RECORD
    try:
        return BestRecord.model_validate(read_json(path))
    # A damaged record costs one comparison; the run must not end for it.
    except ValidationError:
        if path.exists():
            print(f"{path} cannot be read: the next validation counts as the best so far")
        return None
