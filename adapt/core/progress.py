"""How far work that takes over a few seconds has come: a bar on a terminal, a line every minute in a log.

The time left follows from the items done in this process, so it knows a busy machine after the first of them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
logger = logging.getLogger(__name__)
SAY_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class HowFar:
    """How far some work has come: `left_s` is None until two items were timed."""

    what: str
    done: int
    total: int
    unit: str
    left_s: float | None


Listener = Callable[[HowFar], None]
_LISTENERS: list[Listener] = []


@contextlib.contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Tell a listener after each item of whatever work is timed inside; it must be quick."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


class TimeLeft:
    """Estimates when items of equal cost will be done; `afterwards_s` are seconds of work that follow the last one.

    The first item pays for what is made once, so the time per item is that of the others. The first line comes after `first_s`
    seconds and two items, further ones every minute.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        first_s: float = SAY_EVERY_S,
        afterwards_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun, self._done = done, done
        self._afterwards_s, self._clock = afterwards_s, clock
        self._started = self._first_done = clock()
        self._due = self._started + first_s
        self.left_s: float | None = None  # from the second item on

    def advance(self) -> str | None:
        """Count an item as done; return a line where one is due."""
        now = self._clock()
        self._done += 1
        made = self._done - self._begun
        if made == 1:
            self._first_done = now
        else:
            self.left_s = (self._total - self._done) * (now - self._first_done) / (made - 1) + self._afterwards_s
        for listener in _LISTENERS:
            listener(HowFar(what=self._what, done=self._done, total=self._total, unit=self._unit, left_s=self.left_s))
        if now < self._due or self.left_s is None or self._done >= self._total:
            return None
        self._due = now + SAY_EVERY_S
        return f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s, about {spelled(self.left_s)} left"


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate with a bar that appears after two seconds; without a terminal, with log lines if the total is known."""
    bar = tqdm(items, desc=what, total=total, unit=unit, delay=2.0, disable=None, leave=False)
    if total is None:
        yield from bar
        return
    left, has_bar = TimeLeft(what, total, unit), sys.stderr.isatty()
    for item in bar:
        yield item
        said = left.advance()
        if said is not None and not has_bar:
            logger.info("%s", said)


def spelled(seconds: float) -> str:
    """Return a duration in words, in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
