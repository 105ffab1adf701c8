"""Where things lie in a store: `<root>/store/<stage>/<key>`, and, under hidden names beside a key, what belongs to making it."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

STORE = "store"  # below a run directory, beside the runs
MANIFEST = "manifest.json"
METRICS_FILE = "metrics.json"  # what is said of an artifact: how long it took, say
FIGURES_FILE = "figures.json"  # what a stage leaves for pages only; no stage makes anything of it
UNDIGESTED = (METRICS_FILE, FIGURES_FILE)  # listed and checked, and no part of an artifact's digest
NEW, WORK, OLD, LOCK = ".new", ".work", ".old", ".lock"
GONE = ".gone"  # what was taken away and is being deleted
LINKS_LOCK = ".links.lock"  # in the store's directory: shared by those who link, taken by who decides what no run links to
READERS = ".readers"  # in the store's directory: notes of what other run directories read here
_KEY = re.compile(r"[0-9a-f]{20}")


def is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def is_key(name: str) -> bool:
    """Say whether a name is that of an artifact in a store."""
    return _KEY.fullmatch(name) is not None


def is_being_made(path: Path) -> bool:
    """Say whether a directory is one that an artifact is made in."""
    key, ending = path.stem.removeprefix("."), path.suffix
    return path.name.startswith(".") and ending in (NEW, WORK) and is_key(key)


def beside(final: Path, ending: str) -> Path:
    """Return what belongs to making the artifact at `final`: `.<key><ending>`."""
    return final.with_name(f".{final.name}{ending}")


def store_of(place: Path) -> Path | None:
    """Return the store that an artifact's directory lies in, None where it lies in none."""
    found = place.resolve()
    is_in_one = len(found.parts) > 3 and found.parts[-3] == STORE and is_key(found.name)
    return found.parents[1] if is_in_one else None


def finished(final: Path) -> Path | None:
    """Return where the complete artifact of a key is: at its place, or where a kill between a swap's two renames left it."""
    if final.exists():
        return final if is_artifact(final) else None
    return next((place for place in (beside(final, NEW), beside(final, OLD)) if is_artifact(place)), None)


def swap_in(scratch: Path, final: Path) -> None:
    """Put a complete artifact in its place."""
    old = beside(final, OLD)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    scratch.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Finish or undo a swap that a kill interrupted between its two renames."""
    whole = finished(final)
    if whole is not None and whole != final:
        whole.rename(final)
    shutil.rmtree(beside(final, OLD), ignore_errors=True)


def tidy(scratch: Path, work: Path) -> None:
    """After a build that ended early, leave only what a later one goes on from: a complete artifact, or work that was begun."""
    with contextlib.suppress(OSError):
        if not is_artifact(scratch):
            shutil.rmtree(scratch)
    with contextlib.suppress(OSError):  # it is not empty
        work.rmdir()
