"""Errors of a corpus on disk; every message is one clear sentence for its user.

    Exception
    └── CorpusError          the raw data are missing, malformed, hostile or ambiguous
        └── DownloadError    an official archive cannot be fetched or unpacked safely

The launcher prints `CorpusError: <sentence>` and exits with status 2; the packer, which reads masks
in its workers, lists a sample whose mask raises it among the rejected.
"""


# Not a ShardError: this package knows of shards only what a record is.
class CorpusError(Exception):
    """The raw corpus cannot be read as asked; the message has the value, where, and a way out."""


class DownloadError(CorpusError):
    """An official archive cannot be fetched, is another file, or cannot be unpacked safely."""
