"""Errors of the `colorgan` package: each message is one sentence for the user, shown without a traceback.

ColorganError
├── UsageError        bad arguments or a bad recipe
├── LaunchError       the processes, devices or launch profile do not fit the run
├── CheckpointError   a checkpoint is absent, damaged, or of another run
├── NetworkError      sizes that a network cannot take
├── GeneratorError    a folder is no consolidated generator, or does not fit its use
└── TrainingError     training cannot go on (losses that are not numbers, data that does not fit)

`colorgan.cli.run_verb` prints them as `ErrorName: sentence` and exits with status 2.
"""


class ColorganError(Exception):
    """Any mistake or failure that this package explains to the user."""


class UsageError(ColorganError):
    """The command line or the recipe is wrong."""


class LaunchError(ColorganError):
    """The processes, devices or launch profile do not fit the run."""


class CheckpointError(ColorganError):
    """A checkpoint is absent, damaged or belongs to another run."""


class NetworkError(ColorganError):
    """A network cannot be built for the sizes asked."""


class GeneratorError(ColorganError):
    """A folder is not a consolidated generator, or it does not fit what is asked of it."""


class TrainingError(ColorganError):
    """Training cannot start or go on."""
