"""Errors that a user can mend: one line that says what, where and what to do; the command ends with exit code 2."""

import unicodedata

# Controls, marks that turn or hide text (bidirectional overrides, zero-width), line and paragraph separators, half pairs.
_ACTED_ON = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_LONGEST_NAME_BYTES = 200  # what is written under a name adds endings and marks to it


def counted(count: int, thing: str) -> str:
    """Return a number with the thing that it counts: `1 row`, `2,000 rows`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def shown(text: str, kept: str = "") -> str:
    """Return a text for a reader: characters that a terminal or a page would act on are written as escapes, but for `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c in kept or unicodedata.category(c) not in _ACTED_ON else _escaped(c) for c in text)


def is_file_name(name: str) -> bool:
    """Say whether a text can be the name of a file in a given directory: it leads nowhere else, is printable and not too long."""
    is_short = len(name.encode(errors="surrogatepass")) <= _LONGEST_NAME_BYTES
    return is_short and name not in ("", ".", "..") and all(sign not in "/\\" and sign.isprintable() for sign in name)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class AdaptError(Exception):
    """Base of every error that is the input's fault, not the program's.

    Its message is one line, whatever of the input is in it: characters that a terminal would act on are written as escapes.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(AdaptError):
    """A setting is missing, unknown, or cannot work with another one."""


class DataError(AdaptError):
    """A data file is missing, malformed, or does not fit its task."""


class ChangedInput(DataError):
    """A file changed while it was read: what was made of it is of no use, and nothing of it is kept."""


class CheckpointError(AdaptError):
    """A checkpoint, export or artifact is incomplete, damaged, or of another model."""


class TrainingError(AdaptError):
    """Training cannot go on: a loss is not finite, or a rank died."""
