"""Removing from a store what nobody needs, beside commands that build, link and read there.

While the lock of links is had, nothing new is linked: what is unneeded then, and in nobody's use, is renamed away, which makes it
vanish at once and whole. It is deleted afterwards. A kill leaves things under names that nobody takes for a result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from adapt.core.errors import ConfigError
from adapt.core.faults import fault_in
from adapt.core.store_locks import locked, tried
from adapt.core.store_places import GONE, LINKS_LOCK, LOCK, MANIFEST, NEW, OLD, STORE, WORK, beside
from adapt.core.store_survey import Removable, Survey


def remove(root: Path, look: Callable[[], Survey], is_wanted: Callable[[Removable], bool]) -> tuple[Survey, list[Removable]]:
    """Look at a run directory once more, and remove what is unneeded and wanted; return what was found, and what is gone.

    Raises:
        ConfigError: something cannot be removed.
    """
    away: list[tuple[Removable, Path]] = []
    with locked(root / STORE / LINKS_LOCK, "waiting for commands that link results"):
        found = look()
        for one in filter(is_wanted, found.removable):
            with _in_words(one.place), _own(one) as is_mine:
                if is_mine:
                    away.append((one, _renamed(one.place)))
    for one, place in away:
        if not place.name.endswith(LOCK):  # these went with their lock, and may be others' by now
            with _in_words(one.place):
                _delete(place)
    return found, [one for one, _ in away]


@contextlib.contextmanager
def _own(one: Removable) -> Iterator[bool]:
    """Have the locks of something; False where a process has one of them. A lock that nothing is left for goes too."""
    if one.final is None:
        yield True
        return
    lock = beside(one.final, LOCK)
    with locked_if_free(lock) as builds, tried(one.place / MANIFEST) as reads:
        yield builds and reads
        if builds and reads and not any(p.exists() for p in (one.final, *(beside(one.final, end) for end in (NEW, WORK, OLD)))):
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_if_free(lock: Path) -> Iterator[bool]:
    """Have a builder's lock, which is made where it is missing, so that none begins now; False where another process has it."""
    os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    with tried(lock) as is_mine:
        yield is_mine


def _renamed(place: Path) -> Path:
    """Give something a name that nobody takes for a result."""
    if place.name.endswith((GONE, LOCK)) or place.is_symlink() or not place.is_dir():
        return place
    gone = place.with_name(f".{place.name.lstrip('.')}.{os.getpid()}{GONE}")
    _delete(gone)
    place.rename(gone)
    return gone


def _delete(place: Path) -> None:
    if place.is_symlink() or not place.is_dir():
        place.unlink(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):  # another `clean` deletes it too
            shutil.rmtree(place)


@contextlib.contextmanager
def _in_words(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_in(error, place) or ConfigError(f"{place}: cannot be removed ({error.strerror})") from error
