"""A tracker that fails is said once and asked no more: it never costs the work that it watches."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapt.train.guarded_tracker import GuardedTracker, refuse_unwritable
from adapt.train.trackers import open_tracker
from adapt.train.tracking import NoTracker, RunIdentity, TrackedTable, Tracker, TrackerConfig, TrackerKind

CALLS = ("open", "follow", "log", "conclude", "__exit__")


class Failing(NoTracker):
    """Fails in one of its methods, with one error; remembers what it was asked."""

    hint = "look here"

    def __init__(self, where: str, error: BaseException) -> None:
        self.asked: list[str] = []
        self._where, self._error = where, error
        self._ask("open")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self._where:
            raise self._error

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        self._ask("follow")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._ask("log")

    def conclude(self, summary: object, tables: object) -> None:
        self._ask("conclude")

    def __exit__(self, *error: object) -> None:
        self._ask("__exit__")


def opens(tracker: Tracker) -> Callable[[], Tracker]:
    return lambda: tracker


def use(tracker: Tracker) -> str:
    with tracker:
        tracker.follow([])
        for step in (1, 2, 3):
            tracker.log({"loss": 1.0}, step)
        tracker.conclude({}, {"t": TrackedTable(columns=("a",), rows=[[1]])})
    return tracker.hint


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def identity(place: Path) -> RunIdentity:
    return RunIdentity(name="sweep/point", group="sweep", stage="adapt", key="0123", directory=place, config={})


@pytest.mark.parametrize("where", CALLS)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "cannot be written (No space left on device"),
        (RuntimeError("the server said\nno"), "(RuntimeError: the server said)"),
    ],
)
def test_a_failure_anywhere_is_one_line_and_ends_the_tracking(
    where: str, error: Exception, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Failing] = []

    def opened() -> Tracker:
        tracker = Failing.__new__(Failing)
        made.append(tracker)
        Failing.__init__(tracker, where, error)
        return tracker

    assert use(GuardedTracker(opened, "wandb", tmp_path)) == ""
    [line] = said(caplog)
    assert line.startswith("tracker=wandb: gave up (")
    assert words in line
    assert "the run goes on" in line
    asked = made[0].asked
    assert asked.count(where) == (2 if where == "__exit__" else 1), "it is closed, and asked nothing else"
    assert asked[-1] == ("open" if where == "open" else "__exit__")


def test_an_interrupt_is_no_failure_of_the_tracker(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        use(GuardedTracker(lambda: Failing("log", KeyboardInterrupt()), "wandb", tmp_path))


def test_a_disk_that_is_full_read_only_or_gone_is_seen_before_a_tracker_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[tuple[Callable[[Path], object], str]] = [
        (
            lambda place: monkeypatch.setattr(
                os, "statvfs", lambda _: SimpleNamespace(f_flag=0, f_bavail=0, f_frsize=1, f_blocks=9, f_bfree=0)
            ),
            "No space left",
        ),
        (
            lambda place: monkeypatch.setattr(
                os, "statvfs", lambda _: SimpleNamespace(f_flag=1, f_bavail=9, f_frsize=1, f_blocks=9, f_bfree=9)
            ),
            "Read-only",
        ),
        (shutil.rmtree, "vanished"),
    ]
    refuse_unwritable(tmp_path)
    for fault, words in faults:
        caplog.clear()
        monkeypatch.undo()
        place = tmp_path / "run"
        place.mkdir(exist_ok=True)
        inner = Failing("nowhere", ValueError())
        tracker = GuardedTracker(opens(inner), "tensorboard", place)
        tracker.log({}, 1)
        fault(place)
        tracker.log({}, 2)
        tracker.conclude({}, {})
        assert inner.asked == ["open", "log", "__exit__"]
        assert len(said(caplog)) == 1
        assert words in said(caplog)[0]


def test_event_files_that_vanish_while_they_are_written_leave_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    tracker = open_tracker(TrackerConfig(kind=TrackerKind.TENSORBOARD), identity(tmp_path), is_main=True)
    with tracker:
        tracker.log({"loss": 1.0}, 1)
        shutil.rmtree(tmp_path / "tensorboard")
        for step in range(2, 60):
            tracker.log({"loss": 1.0}, step)
    assert tracker.hint == ""
    assert "vanished" in said(caplog)[0]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_wandb_does_not_write_elsewhere_where_its_directory_cannot_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("a file", encoding="utf-8")
    assert use(open_tracker(TrackerConfig(kind=TrackerKind.WANDB), identity(tmp_path), is_main=True)) == ""
    [line] = said(caplog)
    assert "tracker=wandb: gave up" in line
    assert str(tmp_path / "wandb") in line
