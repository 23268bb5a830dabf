"""The built-in sample, drawn with chosen numbers of scenes."""

from pathlib import Path

from datasets.sample.corpus import open_sample
from datasets.sample.writing import SampleSpec


def write_sample(root: Path, **numbers: int) -> None:
    """Draw a sample; `numbers` are fields of SampleSpec."""
    open_sample(root, "train", SampleSpec(**numbers))
