"""Locks of a store, by flock, which the kernel lets go of when a process ends, however it ends.

A builder has the lock of its key, whoever links shares the lock of links, and whoever opened an artifact shares the lock of its
manifest until the process ends. Who wants to remove something takes all three, and leaves what it cannot lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)
_MOST_HELD = 256  # a walk opens fewer; each takes an open file
_held: dict[Path, int] = {}


@contextlib.contextmanager
def locked(path: Path, said: str | None = None, *, is_shared: bool = False) -> Iterator[None]:
    """Have the lock of a file, which is made where it is missing; `said` is logged where others have it, and then waits.

    A lock of a file that was removed meanwhile is none: the new file of that name is locked.
    """
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    handle = -1
    try:
        while handle < 0:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if said is not None:
                    logger.info("%s", said)
                fcntl.flock(handle, how)
            if not _is_same(handle, path):
                os.close(handle)
                handle = -1
        yield
    finally:
        if handle >= 0:
            os.close(handle)


@contextlib.contextmanager
def tried(path: Path) -> Iterator[bool]:
    """Try to have the lock of a file for the time of a block; False where another process has it. A missing file is not made."""
    handle = -1
    try:
        handle = _opened(path)
        if handle < 0:
            yield True
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = _is_same(handle, path)
        except OSError:  # in use, or the file system has no locks: whoever asks must leave it
            is_mine = False
        yield is_mine
    finally:
        if handle >= 0:
            os.close(handle)


def hold(path: Path) -> None:
    """Share a file's lock with other readers until this process ends; nothing where the file is missing or cannot be locked.

    Of many the last 256 are held.
    """
    place = path.absolute()
    handle = _held.pop(place, -1)
    if handle >= 0 and not _is_same(handle, place):
        os.close(handle)
        handle = -1
    while handle < 0:
        try:
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
        except OSError:  # a file system without locks
            os.close(handle)
            return
        if not _is_same(handle, place):
            os.close(handle)
            handle = -1
    _held[place] = handle
    while len(_held) > _MOST_HELD:
        os.close(_held.pop(next(iter(_held))))


def let_go() -> None:
    """Let go of all that is held: a command has ended."""
    while _held:
        os.close(_held.popitem()[1])


def _opened(path: Path) -> int:
    for how in (os.O_RDWR, os.O_RDONLY):  # over NFS an exclusive lock wants a file open for writing
        try:
            return os.open(path, how | os.O_CLOEXEC)
        except PermissionError:
            continue
        except (FileNotFoundError, NotADirectoryError):
            return -1
    raise PermissionError(path)


def _is_same(handle: int, path: Path) -> bool:
    """Say whether an open file is the one that has its name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
