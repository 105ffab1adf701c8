"""What is known of a sweep's points: `sweep.json` in the sweep's directory, written when the sweep ends.

The page of a sweep is made from it and from the points' artifacts, at the sweep's end and by `report` again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_json
from adapt.core.typed import from_plain, to_plain

RECORD_FILE = "sweep.json"
DONE, FAILED, MISSING = "done", "failed", "missing"
_TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """A point: its name, where its results are (`run`, below run.dir), its settings by key, and how it ended.

    `error` is one line of a point that failed. A point that is neither done nor failed was not reached. `objective` is the number
    that a search goes by, where one was asked for.
    """

    number: int
    name: str
    run: str
    settings: dict[str, str] = field(default_factory=dict)
    is_done: bool = False
    error: str | None = None
    objective: float | None = None

    @property
    def status(self) -> str:
        return DONE if self.is_done else MISSING if self.error is None else FAILED

    @property
    def other_settings(self) -> dict[str, str]:
        """The settings without the tasks."""
        return {key: value for key, value in self.settings.items() if key.lstrip("+") != _TASKS}


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep: its command, the point that others are compared with (None: the first that is done), and its points in order.

    `most` is how many points there can be: as many as are listed, or, of a search, its trials.
    """

    command: str
    baseline: str | None
    points: list[PointRecord]
    most: int
    objective: str = "none"

    def with_points(self, found: Sequence[PointRecord]) -> SweepRecord:
        """Return the sweep with points as they ended in place of those that were planned."""
        ended = {point.number: point for point in found}
        planned = {point.number: point for point in self.points}
        return replace(self, points=[(planned | ended)[number] for number in sorted(planned | ended)])


def write_record(directory: Path, record: SweepRecord) -> None:
    """Write `sweep.json`."""
    write_atomically(directory / RECORD_FILE, json.dumps(to_plain(record), ensure_ascii=False, indent=1) + "\n")


def read_record(directory: Path) -> SweepRecord | None:
    """Read the sweep of a directory; None where none has ended there.

    Raises:
        CheckpointError: the file is damaged, or another version wrote it.
    """
    file = directory / RECORD_FILE
    if not file.is_file():
        return None
    try:
        return from_plain(SweepRecord, read_json(file), str(file))
    except ConfigError as error:
        raise CheckpointError(f"{error}; delete it and run the sweep's command again") from error


def settings_in(overrides: Sequence[str]) -> dict[str, str]:
    """Return overrides `key=value` by key; `tasks=['a']` is shown as `a`."""
    found = {}
    for override in overrides:
        key, _, value = override.partition("=")
        bare = key.lstrip("+")
        found[bare] = value.strip("[]").replace("'", "").replace('"', "") if bare == _TASKS else value.strip("'\"")
    return found
