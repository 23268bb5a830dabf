"""What goes wrong with a corpus on disk, as one clear sentence for its user.

    Exception
    └── CorpusError          the raw data are missing, malformed, hostile or ambiguous
        └── DownloadError    an official archive cannot be fetched or unpacked safely

The launcher prints `CorpusError: <sentence>` and exits with status 2; the packer, which reads masks in its
workers, lists a sample whose mask raises it among the rejected.
"""


class CorpusError(Exception):
    """The raw corpus cannot be read as asked: says what, which value, where, and what to do."""


class DownloadError(CorpusError):
    """An official archive cannot be fetched, is not the one it should be, or cannot be unpacked safely."""
