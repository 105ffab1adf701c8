"""Regular expressions of a task's file, bounded: a hostile or careless one ends with a line, not after hours.

Two bounds. A repeat without an upper limit inside another one (`(a+)+`) makes the time grow exponentially with the text: it is
refused when the task is read. What else is slow ends after `MOST_SECONDS` of this process's CPU time on one text; that needs a
timer, which only the main thread of a process has.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from re import _constants, _parser  # type: ignore[attr-defined]  # re shows a pattern's structure in no public way
from types import FrameType
from typing import Any

from adapt.core.errors import ConfigError

MOST_SECONDS = 5.0
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)
_MANY = 1000  # a repeat that may go on as often counts as one without a limit


class _TooSlow(Exception):
    """Searching one text took too long."""


def problem_of(pattern: str | None) -> str | None:
    """Return what is wrong with a regular expression, or None."""
    if not pattern:
        return "missing"
    try:
        re.compile(pattern)
        is_nested = _is_nested(_parser.parse(pattern), inside=False)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression ({error})"
    if is_nested:
        return f"'{pattern}' repeats a repeat, such as (a+)+, which takes forever on some texts; write one repeat, or limits"
    return None


def is_found(pattern: str, text: str, where: str) -> bool:
    """Say whether a pattern is found in a text; `where` names the rule.

    Raises:
        ConfigError: it takes more than `MOST_SECONDS`.
    """
    try:
        with _timed():
            return _compiled(pattern).search(text) is not None
    except _TooSlow:
        raise ConfigError(
            f"{where}: searching a text of {len(text):,} characters for '{pattern}' takes more than {MOST_SECONDS:g} seconds; "
            "write it with fewer repeats (*, +), or with limits ({0,20})"
        ) from None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@contextmanager
def _timed() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def _is_nested(parts: Any, *, inside: bool) -> bool:
    """Say whether a repeat without a limit stands inside another one."""
    for kind, argument in parts:
        is_repeat = kind in _REPEATS and argument[1] >= _MANY
        if is_repeat and inside:
            return True
        if any(_is_nested(inner, inside=inside or is_repeat) for inner in _inner(argument)):
            return True
    return False


def _inner(argument: Any) -> Iterator[Any]:
    """Yield the parts inside an operation, whatever its arguments are."""
    if isinstance(argument, _parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for one in argument:
            yield from _inner(one)
