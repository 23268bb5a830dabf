"""Errors of the `colorgan` package: each message is one sentence for the user, shown without a traceback.

ColorganError
├── UsageError        bad arguments or a bad recipe
├── LaunchError       the processes, devices or launch profile do not fit the run
├── CheckpointError   a checkpoint is absent, damaged, or of another run
├── ArchitectureError      sizes that a network cannot take
├── ModelFolderError    a folder is no consolidated generator, or does not fit its use
├── SaveError         a checkpoint could not be written (full disk, no permission)
├── LostRankError     another rank of the run ended or cannot be reached
└── TrainingError     training cannot go on (data that does not fit)
    └── NotFiniteError    a loss or a gradient is not a number

`colorgan.config.command.run_command` prints them as `ErrorName: sentence` and exits with their `exit_status`. A training process ends
with: 0 done, 2 a mistake to correct, 65 not a finite number, 69 another rank was lost, 74 a checkpoint could not be
written, 75 stopped by a signal after saving, 76 a rank hung (colorgan/runs/watchdog.py). After 69, 74, 75 and 76 the same
command goes on from the last checkpoint.
A launcher of several ranks shows each rank's status and ends with 1 itself; `log.jsonl` has the error and its status
as an event.
"""


class ColorganError(Exception):
    """Any mistake or failure that this package explains to the user."""

    exit_status = 2


class UsageError(ColorganError):
    """The command line or the recipe is wrong."""


class LaunchError(ColorganError):
    """The processes, devices or launch profile do not fit the run."""


class CheckpointError(ColorganError):
    """A checkpoint is absent, damaged or belongs to another run."""


class ArchitectureError(ColorganError):
    """A network cannot be built for the sizes asked."""


class ModelFolderError(ColorganError):
    """A folder is not a consolidated generator, or it does not fit what is asked of it."""


class SaveError(ColorganError):
    """A checkpoint could not be written; the ones before it are as they were."""

    exit_status = 74  # EX_IOERR


class LostRankError(ColorganError):
    """Another rank of the run ended or cannot be reached."""

    exit_status = 69  # EX_UNAVAILABLE


class TrainingError(ColorganError):
    """Training cannot start or go on."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is not a finite number; nothing of it was saved."""

    exit_status = 65  # EX_DATAERR
