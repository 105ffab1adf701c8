"""A tracker that never costs the work that it watches: its first failure is said in one line, and it is asked no more.

Trackers write to disks and networks, which fail. What they would show is in the artifacts, so a run goes on without them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from adapt.core.faults import fault_in
from adapt.train.tracking import NoTracker, TrackedTable, Tracker

logger = logging.getLogger(__name__)
_NOTHING = NoTracker()


class GuardedTracker:
    """Hands everything on to the tracker that `opened` returns; `name` and `place` (where it writes) are said where it fails."""

    def __init__(self, opened: Callable[[], Tracker], name: str, place: Path) -> None:
        self._name, self._place = name, place
        self._tracker: Tracker = _NOTHING
        self._try(lambda: setattr(self, "_tracker", opened()))

    @property
    def hint(self) -> str:
        found: list[str] = []
        self._try(lambda: found.append(self._tracker.hint))
        return found[0] if found else ""

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        self._try(lambda: self._tracker.follow(history))
        self._check()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._check()
        self._try(lambda: self._tracker.log(metrics, step))

    def conclude(self, summary: Mapping[str, Any], tables: Mapping[str, TrackedTable]) -> None:
        self._check()
        self._try(lambda: self._tracker.conclude(summary, tables))

    def __enter__(self) -> GuardedTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._try(lambda: self._tracker.__exit__(kind, error, trace))

    def _check(self) -> None:
        """Give up where the disk does: some trackers write in a thread or process of their own and would not say so."""
        if self._tracker is not _NOTHING:
            self._try(lambda: refuse_unwritable(self._place))

    def _try(self, ask: Callable[[], object]) -> None:
        try:
            ask()
        except Exception as error:
            failed, self._tracker = self._tracker, _NOTHING
            said = fault_in(error, self._place)
            reason = str(said).partition("; ")[0] if said is not None else f"{type(error).__name__}: {_first_line(error)}"
            logger.warning(
                "tracker=%s: gave up (%s); the run goes on, and the same command tracks all of it again", self._name, reason
            )
            try:
                failed.__exit__(type(error), error, error.__traceback__)
            except Exception as again:
                logger.debug("tracker=%s: not closed (%s)", self._name, again)


def refuse_unwritable(place: Path) -> None:
    """Raise OSError where a directory is gone, its file system is read-only, or nothing more fits on it."""
    try:
        found = os.statvfs(place)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(place)) from error
    number = errno.EROFS if found.f_flag & os.ST_RDONLY else errno.ENOSPC if not found.f_bavail else None
    if number is not None:
        raise OSError(number, os.strerror(number), str(place))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
