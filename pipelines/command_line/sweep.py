"""How a sweep's points end: each writes it into a file, so that points in other processes and on other machines are heard too.

A point that fails ends by itself; the others run. Which directory takes the files is in the environment, where every launcher's
processes find it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError
from adapt.core.faults import writable

logger = logging.getLogger("pipelines")
DIED = "its process died without a word"
_PLACE = "MOE_ADAPT_POINTS"  # in the environment of a sweep's processes: the directory


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a point ended; `error` is None for one that is done, else one line."""

    number: int
    name: str
    error: str | None


def begin(directory: Path) -> None:
    """Say where the points of the sweep that starts now leave how they end, below the sweep's directory."""
    os.environ[_PLACE] = str(directory.absolute() / f".points-{os.getpid()}")


@contextlib.contextmanager
def recorded(number: int, name: str) -> Iterator[None]:
    """Record how a point ends; a user error ends this point only, anything else is raised again."""
    _write(Outcome(number=number, name=name, error=DIED))
    try:
        yield
    except AdaptError as error:
        _write(Outcome(number=number, name=name, error=str(error)))
        logger.info("%s failed: %s", name, error)
    except BaseException as error:
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}".splitlines()[0]
        _write(Outcome(number=number, name=name, error=said))
        raise
    else:
        _write(Outcome(number=number, name=name, error=None))


def taken_outcomes() -> list[Outcome]:
    """Return how the points that have started ended, in their order, and remove the files; nothing where no sweep began."""
    if _PLACE not in os.environ:
        return []
    place = Path(os.environ[_PLACE])
    found = [Outcome(**json.loads(file.read_text(encoding="utf-8"))) for file in place.glob("*.json")]
    shutil.rmtree(place, ignore_errors=True)
    return sorted(found, key=lambda outcome: outcome.number)


def summary(outcomes: list[Outcome]) -> str:
    """Return a line for each point: done, or its error."""
    return "\n".join(["sweep:", *(f"  {outcome.name}: {outcome.error or 'done'}" for outcome in outcomes)])


def verdict(outcomes: list[Outcome]) -> str | None:
    """Name the points that failed, in one line; None where all are done."""
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    if not failed:
        return None
    names = ", ".join(failed)
    return f"{len(failed)} of {len(outcomes)} points failed: {names}; the same command runs what is left to do"


def _write(outcome: Outcome) -> None:
    place = Path(os.environ[_PLACE])
    with writable(place):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / f"{outcome.number}.json", json.dumps(asdict(outcome)))
