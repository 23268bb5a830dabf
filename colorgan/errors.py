"""Errors of the `colorgan` package, and the exit statuses of its commands.

Each message is one sentence for the user, shown without a traceback.

    ColorganError
    ├── UsageError            wrong arguments or a wrong recipe
    │   └── OtherRecipeError  the run folder holds a run with another recipe
    ├── LaunchError           the processes, devices or launch profile do not fit the run
    ├── CheckpointError       a checkpoint is missing, damaged, or from another run
    │   └── OtherWeightsError the run started from other weights
    ├── ArchitectureError     sizes that a network cannot have
    ├── ModelFolderError      not a model folder, or one that does not fit its use
    ├── SaveError             a checkpoint could not be written (full disk, no permission)
    ├── LostRankError         another rank of the run ended or cannot be reached
    └── TrainingError         training cannot go on (data that does not fit)
        └── NotFiniteError    NaN or infinity in a loss or a gradient

`colorgan.config.command.run_command` prints `ErrorName: sentence` and exits with the error's
`exit_status`. Launchers of several ranks show each rank's status and exit with 1 themselves; the
statuses of the ranks are in the folder that COLORGAN_STATUS_DIR names, if it is set.
"""

from enum import IntEnum


# Job scripts and the study decide by these numbers: they are an interface and do not change.
class ExitStatus(IntEnum):
    """How a command ended, as its exit status.

    After LOST_RANK, NOT_SAVED, STOPPED and HUNG, rerunning the command resumes it from the last
    checkpoint. The numbers from 65 to 78 follow sysexits.h.
    """

    DONE = 0
    FAULT = 1  # an error of the program itself, with a traceback
    MISTAKE = 2  # of the user; rerunning the command fails the same way
    NOT_FINITE = 65  # NaN or infinity in a loss or a gradient
    OTHER_WEIGHTS = 66  # the run started from other weights
    LOST_RANK = 69  # another rank ended or cannot be reached
    NOT_SAVED = 74  # a checkpoint could not be written
    STOPPED = 75  # by a signal, after saving
    HUNG = 76  # a rank did not answer
    OTHER_RECIPE = 78  # the run folder holds a run with another recipe
    INTERRUPTED = 130  # by Ctrl-C, before there was anything to save
    CLOSED_PIPE = 141  # the reader of standard output went away, as in `... | head`


class ColorganError(Exception):
    """A mistake or failure that this package explains to the user."""

    # The usual case. A class of its own is for errors after which a caller does something else.
    exit_status: int = ExitStatus.MISTAKE


class UsageError(ColorganError):
    """The command line or the recipe is wrong."""


class OtherRecipeError(UsageError):
    """The run folder holds a run with another recipe."""

    exit_status = ExitStatus.OTHER_RECIPE


class LaunchError(ColorganError):
    """The processes, devices or launch profile do not fit the run."""


class CheckpointError(ColorganError):
    """A checkpoint is missing, damaged or from another run."""


class OtherWeightsError(CheckpointError):
    """The run started from other weights than those given now."""

    exit_status = ExitStatus.OTHER_WEIGHTS


class ArchitectureError(ColorganError):
    """A network cannot be built with the requested sizes."""


class ModelFolderError(ColorganError):
    """A folder is not a model folder, or does not fit what it is needed for."""


class SaveError(ColorganError):
    """A checkpoint could not be written; the earlier ones are intact."""

    exit_status = ExitStatus.NOT_SAVED


class LostRankError(ColorganError):
    """Another rank of the run ended or cannot be reached."""

    exit_status = ExitStatus.LOST_RANK


class TrainingError(ColorganError):
    """Training cannot start or go on."""


class NotFiniteError(TrainingError):
    """A loss or a gradient is NaN or infinite; nothing of that step was saved."""

    exit_status = ExitStatus.NOT_FINITE
