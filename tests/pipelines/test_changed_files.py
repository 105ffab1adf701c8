"""A file that changes while a stage reads it: nothing of it is kept under the key of what it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import ArtifactStore
from adapt.core.errors import ChangedInput, DataError
from pipelines.stages.contract import Files, Reads, key_of

Change = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Inner(Reads):
    files: Files


@dataclass(frozen=True, kw_only=True)
class Outer(Reads):
    inner: Inner
    several: tuple[Inner, ...]


def appended(path: Path) -> None:
    with path.open("a") as stream:
        stream.write("more\n")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("XY\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def made(root: Path, change: Change, place: str, error: Exception | None = None) -> tuple[ArtifactStore, Any]:
    """Build while a file changes; return the store and the key."""
    paths = {name: root / name for name in ("one", "two")}
    for path in paths.values():
        path.write_text("ab\n")
    reads = Outer(inner=Inner(files=Files({"one": paths["one"]})), several=(Inner(files=Files({"two": paths["two"]})),))
    key, store = key_of("any", 1, reads), ArtifactStore(root / "runs")

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (work / "part").write_text("of what it was not")
        change(paths[place])
        if error is not None:
            raise error
        return {}

    store.produce(key, build, force=False, created=lambda: "now")
    return store, key


@pytest.mark.parametrize("place", ["one", "two"])
@pytest.mark.parametrize("change", [appended, replaced])
def test_nothing_is_kept_of_a_file_that_changed_meanwhile(tmp_path: Path, change: Change, place: str) -> None:
    with pytest.raises(ChangedInput, match=f"{place}: changed while it was read, .*run the command again"):
        made(tmp_path, change, place)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.name in ("part", "manifest.json")]


@pytest.mark.parametrize("change", [lambda path: os.utime(path, (0, 0)), Path.unlink])
def test_a_file_that_was_touched_or_taken_away_did_not_change(tmp_path: Path, change: Change) -> None:
    store, key = made(tmp_path, change, "one")
    assert (store.place(key) / "manifest.json").is_file()


def test_an_error_over_a_changed_file_is_that_change_and_any_other_stays(tmp_path: Path) -> None:
    with pytest.raises(ChangedInput):
        made(tmp_path, appended, "one", DataError("line 2: breaks off"))
    with pytest.raises(DataError, match="breaks off"):
        made(tmp_path, lambda path: None, "one", DataError("line 2: breaks off"))
