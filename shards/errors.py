"""Errors of shards, as one small tree; every message is one sentence that says what to do.

ShardError              anything below; what a launcher catches
├── ManifestError       a packed folder that is missing, damaged, or from a newer version
├── PictureError        one picture or mask that cannot be packed: its reason ends in rejected.jsonl
├── PackError           packing cannot start or go on: settings, disk, another packer or request
├── OrderError          sizes that do not divide, or a position outside the order
└── LoadError           samples that fail to be read or decoded, over the share that is allowed
"""


class ShardError(Exception):
    """The root: a user's mistake or damaged data, never a bug of ours."""


class ManifestError(ShardError):
    """A packed folder that is missing, damaged, or written by a newer version."""


class PictureError(ShardError):
    """An image or mask that cannot be packed; the message is the reason without the file's name."""


class PackError(ShardError):
    """Packing cannot start or go on."""


class OrderError(ShardError):
    """Sizes that do not divide, or a position outside the order."""


class LoadError(ShardError):
    """Samples that cannot be read or decoded, over the share that is allowed."""
