"""Errors that a user can mend: one line that says what, where and what to do; the command ends with exit code 2."""


class AdaptError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ConfigError(AdaptError):
    """A setting is missing, unknown, or cannot work with another one."""


class DataError(AdaptError):
    """A data file is missing, malformed, or does not fit its task."""


class CheckpointError(AdaptError):
    """A checkpoint, export or artifact is incomplete, damaged, or of another model."""


class TrainingError(AdaptError):
    """Training cannot go on: a loss is not finite, or a rank died."""
