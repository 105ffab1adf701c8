"""Where a task's splits are: `<root>/<folder>/<split>` with any ending that the reader of rows knows, one file for each.

A split may also be a directory of that name (a saved data set, a folder of Parquet files), or any file that `Splits.own` names.

A name given on the command line or in a task file never leads outside its directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapt.core.errors import ConfigError, DataError, is_file_name
from adapt.text.rows.directories import is_rows_directory
from adapt.text.rows.reading import endings_of

_DEFAULT_ENDING = ".json"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Where tasks' splits are: folders below `root`, and files of one's own by task and split, which go first."""

    root: Path | None
    own: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    def place(self, task: str, folder: str, split: str) -> Path:
        """Return where a split is or would be. Raises ConfigError or DataError as `place_of_split` does."""
        refuse_no_name("split", split)
        own = self.own.get(task, {})
        if split in own:
            return own[split]
        if self.root is None:
            return Path(f"data.files.{task}") / split
        return place_of_split(self.root / folder, split)

    def __str__(self) -> str:
        return " and ".join(([f"data.root={self.root}"] if self.root is not None else []) + (["data.files"] if self.own else []))


def place_of_split(folder: Path, split: str) -> Path:
    """Return a split's file; where there is none, the name that it would have as JSON lines.

    Raises:
        ConfigError: the split's name is not that of a file in the folder.
        DataError: two files are this split, or the folder cannot be read.
    """
    refuse_no_name("split", split)
    try:
        files = sorted(path for path in folder.iterdir() if _is_split(path, split))
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


def _is_split(path: Path, split: str) -> bool:
    if not path.name.startswith(split):
        return False
    ending = path.name[len(split) :].lower()
    return is_rows_directory(path) if not ending else endings_of(path.name) == ending and path.is_file()
