"""How a sweep's points end: each writes it into a file, so that points in other processes and on other machines are heard too.

A point that fails ends by itself; the others run. Which directory takes the files is in the environment, where every launcher's
processes find it. What is there of a sweep that was killed is removed by the next one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError
from adapt.core.faults import writable
from adapt.core.json_files import read_json
from adapt.core.store_locks import hold, tried
from adapt.core.typed import from_plain, to_plain
from pipelines.walk.sweep_record import PointRecord, SweepRecord

logger = logging.getLogger("pipelines")
DIED = "its process died without a word"
_PLACE = "MOE_ADAPT_POINTS"  # in the environment of a sweep's processes: the directory
_NAME = ".points-"
_PLAN, _LOCK = "plan", "lock"


@dataclass(kw_only=True)
class Reached:
    """What a point has come to; `objective` is filled in while it runs."""

    objective: float | None = None


def begin(directory: Path, planned: SweepRecord) -> None:
    """Say where the points of the sweep that starts now leave how they end, below the sweep's directory."""
    place = directory.absolute() / f"{_NAME}{os.getpid()}"
    os.environ[_PLACE] = str(place)
    with writable(place):
        for old in directory.glob(f"{_NAME}*"):
            with tried(old / _LOCK) as is_left:
                if is_left:
                    shutil.rmtree(old, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / _LOCK).touch()
        write_atomically(place / f"{_PLAN}.json", json.dumps(to_plain(planned)))
    hold(place / _LOCK)


def place_of_points() -> Path | None:
    """Return the directory of the running sweep's files; None where no sweep has begun."""
    return Path(os.environ[_PLACE]) if os.environ.get(_PLACE) else None


def lock_of_sweep(place: Path) -> Path:
    """Return the file that a sweep's process has locked for as long as it lives."""
    return place / _LOCK


def sweep_directory() -> Path:
    """Return the directory of the sweep whose points these are."""
    place = place_of_points()
    assert place is not None, "no sweep has begun"
    return place.parent


def announce(point: PointRecord, where: str = "") -> None:
    """Say which point begins."""
    plan = planned()
    of = f"at most {plan.most}" if plan.most > len(plan.points) else str(plan.most)
    logger.info("point %d of %s: %s%s", point.number + 1, of, point.name, where)


@contextlib.contextmanager
def recorded(point: PointRecord) -> Iterator[Reached]:
    """Record how a point ends; a user error ends this point only, anything else is raised again."""
    reached = Reached()
    record_end(replace(point, error=DIED))
    try:
        yield reached
    except AdaptError as error:
        record_end(replace(point, error=str(error)))
        logger.info("%s failed: %s", point.name, error)
    except BaseException as error:
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}".splitlines()[0]
        record_end(replace(point, error=said))
        raise
    else:
        record_end(replace(point, is_done=True, objective=reached.objective))


def record_end(point: PointRecord) -> None:
    """Write how a point ended."""
    place = place_of_points()
    assert place is not None, "no sweep has begun"
    with writable(place):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / f"{point.number}.json", json.dumps(to_plain(point)))


def recorded_end(number: int) -> PointRecord:
    """Read how a point of the running sweep ended."""
    place = place_of_points()
    assert place is not None, "no sweep has begun"
    file = place / f"{number}.json"
    return from_plain(PointRecord, read_json(file), str(file))


def taken_record() -> SweepRecord | None:
    """Return how the points ended, and which were not reached, and remove the files; None where no sweep began."""
    place = place_of_points()
    if place is None or not place.is_dir():
        return None
    found = [recorded_end(int(file.stem)) for file in place.glob("[0-9]*.json")]
    record = planned().with_points(found)
    shutil.rmtree(place, ignore_errors=True)
    return record


def summary(record: SweepRecord) -> str:
    """Return a line for each point: done, its error, or that it was not reached."""
    ends = {point.name: "done" if point.is_done else point.error or "not reached" for point in record.points}
    return "\n".join(["sweep:", *(f"  {name}: {end}" for name, end in ends.items())])


def verdict(record: SweepRecord) -> str | None:
    """Name the points that are not done, in one line; None where all are."""
    left = [point.name for point in record.points if not point.is_done]
    if not left:
        return None
    return f"{len(left)} of {len(record.points)} points failed: {', '.join(left)}; the same command runs what is left to do"


def planned() -> SweepRecord:
    """Read how the running sweep was planned."""
    place = place_of_points()
    assert place is not None, "no sweep has begun"
    file = place / f"{_PLAN}.json"
    return from_plain(SweepRecord, read_json(file), str(file))
