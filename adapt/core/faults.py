"""Faults of the machine as one line: a disk that is full, closed or gone, and memory or open files that are used up.

An exception of any library flows in; an error that names the place flows out. A library may wrap a fault in an error of its own
with the system's message in its text, so that message counts as much as an error number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.limits import largest_file, memory_limit
from adapt.core.store_places import is_being_made

_GO_ON = "the same command goes on from there"
_ADVICE = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "open the place to this user",
    errno.EPERM: "open the place to this user",
    errno.EIO: "check that disk",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
    errno.EFBIG: "raise `ulimit -f`",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs' files",
}
_OUT_OF_MEMORY = re.compile(r"can('t|not) allocate memory|out of memory|std::bad_alloc|realloc of size", re.IGNORECASE)
_WORDS = re.compile("|".join(re.escape(os.strerror(number)) for number in _ADVICE))
_LEAST_FREE = 1 << 16  # bytes; a disk with less than this is called full


def fault_in(error: BaseException, place: Path) -> AdaptError | None:
    """Return an error of the machine in words, or None where the error is no fault of the machine's.

    `place` is where the work was written to; an error that names a file of its own is said by that file.
    """
    if isinstance(error, AdaptError):
        return None
    said = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _OUT_OF_MEMORY.search(said):
        return ConfigError(_out_of_memory(place))
    name = error.filename if isinstance(error, OSError) else None
    file = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    where = file or place
    number = _known_number(error) or number
    if number in _ADVICE:
        done = "opened" if number in (errno.EMFILE, errno.ENFILE) else "written"
        reason = f"{os.strerror(number)}{_free_words(where, number)}"
        return ConfigError(f"{where}: cannot be {done} ({reason}); {_ADVICE[number]}, and {_GO_ON}")
    is_gone = not place.exists() or (file is not None and not file.parent.exists())
    if is_gone and (number in (errno.ENOENT, errno.ENOTDIR) or os.strerror(errno.ENOENT) in said):
        return ConfigError(f"{where}: vanished while the command worked there; the same command makes it again")
    return None


def advice_on(error: BaseException) -> str | None:
    """Return what helps against an error of a disk, in words; None where it is no fault of the machine's that is known."""
    number = _known_number(error)
    return None if number is None else _ADVICE[number]


def _known_number(error: BaseException) -> int | None:
    """Return an error's number if there is advice on it; some libraries give it in words only."""
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return error.errno
    found = _WORDS.search(str(error))
    return next((known for known in _ADVICE if found is not None and os.strerror(known) == found.group()), None)


@contextlib.contextmanager
def faults_in_words(place: Path) -> Iterator[None]:
    """Turn faults of the machine into one clear line; other errors pass.

    Raises:
        ConfigError: the disk or the memory below or at `place` gave out.
    """
    try:
        yield
    except Exception as error:
        found = fault_in(error, place)
        if found is None:
            raise
        raise found from error


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn failures to write below `path` into one clear line.

    Raises:
        ConfigError: the place cannot be written to, it was there and vanished, or the disk is full.
    """
    was_there = path.exists() or any(is_being_made(place) for place in (path, *path.parents))
    try:
        yield
    except OSError as error:
        has_vanished = was_there and not path.exists()
        found = fault_in(error, path) if has_vanished or error.errno not in (errno.ENOENT, errno.ENOTDIR) else None
        if found is not None:
            raise found from error
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place or free space") from error


def refuse_closed(path: Path, named: str | None = None) -> None:
    """Raise ConfigError where nothing could be made at or below `path`: a file is in the way, or its directory takes none.

    A file is made there and removed, since permissions do not tell (of /proc, say). `named` is what the user gave.
    """
    there = next(place for place in [path.absolute(), *path.absolute().parents] if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # who needs room says how much
        said = named or str(path)
        raise ConfigError(f"{said}: cannot be written (at {there}: {error.strerror}); choose another place") from error


def need_room(place: Path, n_bytes: int, what: str) -> None:
    """Raise ConfigError, before `what` is written to a directory, where its disk or a file's limit cannot hold `n_bytes`."""
    with faults_in_words(place):
        free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise ConfigError(
            f"{place}: {what} needs {said_bytes(n_bytes)} there, and {said_bytes(free)} are free; free space, and {_GO_ON}"
        )
    limit = largest_file()
    if limit is not None and n_bytes > limit:
        raise ConfigError(
            f"{place}: {what} needs {said_bytes(n_bytes)}, and `ulimit -f` allows files of {said_bytes(limit)}; raise it"
        )


def said_bytes(n_bytes: float) -> str:
    """Return a size in words, with three digits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


def _free_words(place: Path, number: int | None) -> str:
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    there = next((parent for parent in [place, *place.parents] if parent.exists()), None)
    free = None if there is None else shutil.disk_usage(there).free
    return "" if free is None or free < _LEAST_FREE else f", {said_bytes(free)} are free"


def _out_of_memory(place: Path) -> str:
    limit = memory_limit()
    allowed = "" if limit is None else f" ({limit.what} allows {said_bytes(limit.n_bytes)})"
    return (
        f"{place}: memory is used up{allowed}; lower engine.micro_batch where a model is trained, scorer.max_batch_tokens where "
        f"rows are scored, and {_GO_ON}"
    )
