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
_BAR_BY_COST = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


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
    """Estimates when items will be done; `afterwards_s` are seconds of work that follow the last one.

    Items are of equal cost, or the first n of them cost what `cost(n)` says, in whatever unit. The first item pays for what is made
    once, so it is not timed. The first line comes after `first_s` seconds and two items, further ones every minute.
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
        cost: Callable[[int], float] = float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun, self._done = done, done
        self._afterwards_s, self._cost, self._clock = afterwards_s, cost, clock
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
            to_do = self._cost(self._total) - self._cost(self._done)
            timed = self._cost(self._done) - self._cost(self._begun + 1)
            self.left_s = to_do * (now - self._first_done) / timed + self._afterwards_s
        for listener in _LISTENERS:
            listener(HowFar(what=self._what, done=self._done, total=self._total, unit=self._unit, left_s=self.left_s))
        if now < self._due or self.left_s is None or self._done >= self._total:
            return None
        self._due = now + SAY_EVERY_S
        return f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s, about {spelled(self.left_s)} left"


def progress(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it", cost: Callable[[int], float] | None = None
) -> Iterator[T]:
    """Iterate with a bar that appears after two seconds; without a terminal, with log lines if the total is known.

    Where items differ in `cost`, which says what the first n of them take, the bar has the time left that follows from it.
    """
    form = None if cost is None else _BAR_BY_COST
    bar = tqdm(items, desc=what, total=total, unit=unit, delay=2.0, disable=None, leave=False, bar_format=form)
    if total is None:
        yield from bar
        return
    left = TimeLeft(what, total, unit) if cost is None else TimeLeft(what, total, unit, cost=cost)
    has_bar = sys.stderr.isatty()
    for item in bar:
        yield item
        said = left.advance()
        if cost is not None and left.left_s is not None:
            bar.set_postfix_str(f"about {spelled(left.left_s)} left", refresh=False)
        if said is not None and not has_bar:
            logger.info("%s", said)


def spelled(seconds: float) -> str:
    """Return a duration in words, in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
