"""Where a task's splits are: `<root>/<folder>/<split>` with any ending that the reader of rows knows, one file for each.

A name given on the command line or in a task file never leads outside its directory.
"""

from __future__ import annotations

from pathlib import Path

from adapt.core.errors import ConfigError, DataError, is_file_name
from adapt.text.rows.reading import endings_of

_DEFAULT_ENDING = ".json"


def place_of_split(folder: Path, split: str) -> Path:
    """Return a split's file; where there is none, the name that it would have as JSON lines.

    Raises:
        ConfigError: the split's name is not that of a file in the folder.
        DataError: two files are this split, or the folder cannot be read.
    """
    refuse_no_name("split", split)
    try:
        files = sorted(path for path in folder.iterdir() if _is_split(path.name, split) and path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        files = []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise DataError(f"{folder}: has {len(files)} files for split '{split}' ({names}); keep one")
    return files[0] if files else folder / f"{split}{_DEFAULT_ENDING}"


def refuse_no_name(what: str, name: str) -> None:
    """Raise ConfigError for what cannot be the name of a file in a given directory."""
    if not is_file_name(name):
        raise ConfigError(f"{what}: {name!r} is no plain name; give one without slashes")


def _is_split(name: str, split: str) -> bool:
    return name.startswith(split) and endings_of(name) == name[len(split) :].lower() != ""
