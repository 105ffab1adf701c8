"""What a command says of itself while it walks a run, for those who watch, and what it was, for the page of the run.

Each command leaves one file below its run, `<run.dir>/<run.name>/.watch/<command>.json`: the words it was given, the stage that it
builds and since when, how far that has come, and how it ended. The file is replaced as a whole, at most once a second between
stages, and costs nothing else: a disk that cannot take it never ends a run. A command that is refused before it has done anything
leaves none. A process that was killed says nothing, so whoever reads asks whether it is still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from adapt.core.json_files import read_json
from adapt.core.progress import HowFar, told_to
from adapt.core.typed import from_plain, to_plain

DIRECTORY = ".watch"
RUNNING, DONE, FAILED, STOPPED, KILLED = "running", "done", "failed", "stopped", "killed"
_EVERY_S = 1.0
_BEAT_S, _BEATS_MISSED = 30.0, 10  # a command says at least so often that it is there
_KEPT = 12  # files of commands that ended, for each run


@dataclass(frozen=True, kw_only=True)
class Record:
    """A command: times are seconds since 1970, `work` is where the stage that is built leaves its own progress.

    `settings` are those that differ from the defaults. `born` is when the system started the process, in its own ticks, so that
    another process of that number is not taken for it.
    """

    run: str
    words: list[str]
    host: str
    process: int
    born: str
    started: float
    at: float
    state: str = RUNNING
    said: str = ""
    stages: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    stage: str | None = None
    task: str | None = None
    stage_started: float | None = None
    work: str | None = None
    doing: str | None = None
    done: int = 0
    total: int = 0
    unit: str = ""
    left_s: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process is there; one of another machine must have said so within the last minutes."""
        if self.state != RUNNING:
            return False
        if self.host != socket.gethostname():
            return time.time() - self.at < _BEATS_MISSED * _BEAT_S
        return _born(self.process) == self.born if self.born else _is_there(self.process)

    @property
    def ended_as(self) -> str:
        """How it stands: a process that is gone without a word was killed."""
        return KILLED if self.state == RUNNING and not self.is_alive else self.state

    @property
    def command(self) -> str:
        """The command as it can be typed."""
        return shlex.join(["python", "-m", *self.words])


class ProgressRecord:
    """Writes a command's record below its run; before `going_on` it writes nothing."""

    def __init__(self, directory: Path, run: str) -> None:
        self._place = directory / DIRECTORY
        self._run = run
        self._record: Record | None = None
        self._due = 0.0
        self._is_unsaid = False
        self._has_done = False  # a stage, to its end
        self._made: list[Path] = []  # directories for the record, the innermost first
        self._lock = threading.RLock()  # the beat is a thread of its own

    @contextlib.contextmanager
    def going_on(self, stages: list[str], settings: dict[str, str]) -> Iterator[None]:
        """Say that stages are walked with settings that differ from the defaults, and at the end how it ended."""
        now = time.time()
        self._record = Record(
            run=self._run, words=command_words(), host=socket.gethostname(), process=os.getpid(), born=_born(os.getpid()),
            started=now, at=now, stages=stages, settings=settings,
        )  # fmt: skip
        self._made = [place for place in (self._place, *self._place.parents[:2]) if not place.exists()]
        self._forget_old()
        self._write()
        try:
            with told_to(self._told), self._beating():
                yield
        except KeyboardInterrupt:
            self._change(state=STOPPED, said="interrupted; the same command goes on from the last saved state")
            raise
        except BaseException as error:
            if isinstance(error, AdaptError) and not self._has_done and not self._has_left_work():
                self._withdraw()
                raise
            lines = str(error).splitlines() or [""]
            self._change(state=FAILED, said=lines[0] if isinstance(error, AdaptError) else f"{type(error).__name__}: {lines[0]}")
            raise
        self._change(state=DONE, stage=None, task=None, doing=None)

    def begin(self, stage: str, task: str | None, work: Path) -> None:
        """Say that a stage is being built, and where it works."""
        self._change(
            stage=stage, task=task, stage_started=time.time(), work=str(work.resolve()), doing=None, done=0, total=0, left_s=None
        )

    def skip(self) -> None:
        """Take note that a stage's result was there."""
        self._has_done = True

    def say(self, line: str) -> None:
        """Say what came out last."""
        self._has_done = True
        self._change(said=line, work=None, doing=None)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Write what work says of itself once a second, and now and then that the command is there."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(_EVERY_S):
                with self._lock:
                    if self._is_unsaid or time.monotonic() >= self._due:
                        self._write()

        thread = threading.Thread(target=beat, name="progress record", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _told(self, found: HowFar) -> None:
        """Take note of how far some work has come; the beat writes it."""
        with self._lock:
            if self._record is not None:
                self._record = replace(
                    self._record, doing=found.what, done=found.done, total=found.total, unit=found.unit, left_s=found.left_s
                )
                self._is_unsaid = True

    def _change(self, **changes: Any) -> None:
        with self._lock:
            if self._record is not None:
                self._record = replace(self._record, **changes)
                self._write()

    def _has_left_work(self) -> bool:
        return self._record is not None and self._record.work is not None and Path(self._record.work).exists()

    def _withdraw(self) -> None:
        """Remove the record, and directories that were made for it only."""
        with self._lock, contextlib.suppress(OSError):
            self._file().unlink(missing_ok=True)
            for place in self._made:
                place.rmdir()

    def _file(self) -> Path:
        assert self._record is not None
        return self._place / f"{self._record.started:.6f}-{self._record.process}.json"

    def _write(self) -> None:
        assert self._record is not None
        self._due, self._is_unsaid = time.monotonic() + _BEAT_S, False
        self._record = replace(self._record, at=time.time())
        with contextlib.suppress(OSError):
            self._place.mkdir(parents=True, exist_ok=True)
            place = self._file()
            scratch = place.with_name(f".{place.name}")
            scratch.write_text(json.dumps(to_plain(self._record), ensure_ascii=False), encoding="utf-8")
            scratch.replace(place)

    def _forget_old(self) -> None:
        for place in sorted(self._place.glob("[!.]*.json"))[:-_KEPT]:
            with contextlib.suppress(OSError):
                place.unlink()


def records_of(directory: Path) -> list[Record]:
    """Return the records of a run's commands, the oldest first; what cannot be read, or another version wrote, is left out."""
    found = []
    for place in (directory / DIRECTORY).glob("[!.]*.json"):
        with contextlib.suppress(CheckpointError, ConfigError):
            found.append(from_plain(Record, read_json(place), str(place)))
    return sorted(found, key=lambda record: record.started)


def command_words() -> list[str]:
    """Return what this process was started as, behind `python -m`: the module and its words, as they were typed."""
    words = sys.orig_argv[1:]
    return words[words.index("-m") + 1 :] if "-m" in words else words


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _born(process: int) -> str:
    """Return when the system started a process, in its own ticks; empty where it is gone, or the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
