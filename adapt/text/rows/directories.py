"""Directories that are read as one file of rows: a data set saved by `datasets.save_to_disk`, or a folder of Parquet parts.

Of a saved data set, `state.json` names the Arrow files; they cannot lead out of the directory. Of a folder of Parquet parts, all
are read in the order of their names, numbers in them by value. Refused are parts in folders of their own, parts of several data
sets (`train-...`, `test-...`) and missing ones (`-00001-of-00003`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from adapt.core.errors import CheckpointError, DataError, is_file_name
from adapt.core.json_files import read_object
from adapt.text.rows.contract import Kind

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_PARQUET = ".parquet"
_NUMBER = re.compile(r"(\d+)(?:-of-(\d+))?")
_DIGITS = re.compile(r"([0-9]+)")
_SAVE_ANEW = "load it with datasets.load_from_disk and save it anew"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The files that hold a directory's rows, in their order."""

    kind: Kind
    files: list[Path]


def is_rows(path: Path) -> bool:
    """Say whether a path is a file, or a directory that is read like one."""
    return path.is_file() or is_rows_directory(path)


def is_rows_directory(path: Path) -> bool:
    """Say whether a directory is read as one file of rows; what is wrong with it is found when it is opened."""
    try:
        if not path.is_dir():
            return False
        return any((path / name).is_file() for name in (_STATE, _SPLITS)) or bool(_parquet_files(path))
    except OSError:
        return False


def parts_of(path: Path, called: str) -> Parts:
    """Return the files of a directory of rows.

    Raises:
        DataError: it holds several splits, is incomplete, or names files that are not its own.
    """
    try:
        if (path / _SPLITS).is_file():
            raise DataError(_several(path, called))
        if (path / _STATE).is_file():
            return Parts(kind=Kind.ARROW, files=_saved_files(path, called))
        files = _parquet_files(path)
    except OSError as error:
        raise DataError(f"{called}: cannot be read ({error.strerror})") from error
    except CheckpointError as error:
        raise DataError(f"{error}; {_SAVE_ANEW}") from error
    if not files:
        raise DataError(f"{called}: is a directory, and neither a data set of datasets.save_to_disk nor a folder of Parquet files")
    _refuse_mixed(files, called)
    _refuse_folders(path, called)
    return Parts(kind=Kind.PARQUET, files=files)


def files_of(path: Path) -> dict[str, Path]:
    """Return the files that hold the rows of a file or directory by name: '' for a file. Raises DataError as `parts_of` does.

    Where the names do not sort as they are read, they say the place too, so that a key holds the order.
    """
    if not path.is_dir():
        return {"": path}
    files = parts_of(path, str(path)).files
    is_sorted = files == sorted(files)
    return {f"/{file.name}" if is_sorted else f"/{place}/{file.name}": file for place, file in enumerate(files)}


def _parquet_files(path: Path) -> list[Path]:
    files = (file for file in path.iterdir() if file.name.lower().endswith(_PARQUET) and file.is_file())
    return sorted(
        files, key=lambda file: ([int(part) if part.isdecimal() else part for part in _DIGITS.split(file.name)], file.name)
    )


def _refuse_folders(path: Path, called: str) -> None:
    """Raise DataError where folders beside the parts hold Parquet files too, which nobody would read."""
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_"))):
        if any(file.name.lower().endswith(_PARQUET) for file in folder.rglob("*")):
            raise DataError(f"{called}: has Parquet files, and more of them in its folder {folder.name}; put all in one folder")


def _several(path: Path, called: str) -> str:
    found = read_object(path / _SPLITS).get("splits")
    names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    one = names[0] if names else "train"
    return f"{called}: holds several splits ({', '.join(names)}); give the directory of one, such as {called}/{one}"


def _saved_files(path: Path, called: str) -> list[Path]:
    state = read_object(path / _STATE)
    if state.get("_indices_data_files"):
        raise DataError(f"{called}: was saved with a selection of its rows beside it; {_SAVE_ANEW}")
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        raise DataError(f"{called}: its {_STATE} names no files of data; {_SAVE_ANEW}")
    files = []
    for entry in listed:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_file_name(name):
            raise DataError(f"{called}: its {_STATE} names a file that is not one of the directory; {_SAVE_ANEW}")
        file = path / name
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path)):
            raise DataError(f"{called}: {name} leads out of the directory; {_SAVE_ANEW}")
        if not file.is_file():
            raise DataError(f"{called}: {name} is missing; {_SAVE_ANEW}")
        files.append(file)
    if len(set(files)) < len(files):
        raise DataError(f"{called}: its {_STATE} names a file twice; {_SAVE_ANEW}")
    return files


def _refuse_mixed(files: list[Path], called: str) -> None:
    names = sorted({_NUMBER.sub("#", file.name[: -len(_PARQUET)]) for file in files})
    if len(names) > 1:
        some = ", ".join(name.rstrip("#-_. ") or "numbers" for name in names[:4])
        raise DataError(f"{called}: holds Parquet files of several data sets ({some}); give one of them, or a folder for each")
    for file in files:
        found = _NUMBER.search(file.name)
        if found is not None and found[2] is not None and int(found[2]) != len(files):
            raise DataError(f"{called}: has {len(files)} of {int(found[2])} Parquet parts; put the others there")
