"""Errors that a user can mend: one line that says what, where and what to do; the command ends with exit code 2."""


class AdaptError(Exception):
    """Base of every error that is the input's fault, not the program's.

    Its message is one line, whatever of the input is in it: characters that a terminal would act on are written as escapes.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class ConfigError(AdaptError):
    """A setting is missing, unknown, or cannot work with another one."""


class DataError(AdaptError):
    """A data file is missing, malformed, or does not fit its task."""


class CheckpointError(AdaptError):
    """A checkpoint, export or artifact is incomplete, damaged, or of another model."""


class TrainingError(AdaptError):
    """Training cannot go on: a loss is not finite, or a rank died."""
