"""`python -m pipelines.watch [run.dir=runs] [run.name=NAME] [--once] [--plain] [key=value ...]`

Show the runs of a directory that go on now, and those that ended lately: the stage and since when, step of steps, losses, tokens
a second, time left, load of experts, memory; of a run that ended, how, and its last line. Nothing is started or stopped, no server
is asked: it reads files that runs write, so it also sees runs of other machines on a shared disk.

  run.dir    the directory that holds runs (runs)
  run.name   only this run and the points of this sweep
  --once     print it once, as text, and leave
  --plain    text instead of a screen; so it is too where the output is no terminal. It comes every `every_s` seconds, and ends
             when nothing runs any more
  every_s    seconds between looks (1 on a screen, 10 as text)
  ended_hours  how long ago a run may have ended to be shown (24)

Ctrl-C leaves. The screen needs rich (`pip install 'moe-adapt[watch]'`), text needs nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapt.core.artifacts import STORE
from adapt.core.errors import ConfigError, shown
from adapt.core.faults import said_bytes
from adapt.core.progress import spelled
from adapt.train.live import LiveTraining, read_live
from pipelines.stages.progress_record import DIRECTORY, RUNNING, Record, records_of

_FLAGS = ("--once", "--plain")
_DEPTH = 4  # of a run's name below run.dir, its sweep's points included
_FIRST_LOSSES = ("total", "context", "prompt", "pseudo_label", "balance")


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """Which runs are watched."""

    dir: str = "runs"
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is watched, and how it is shown."""

    run: RunChoice = field(default_factory=RunChoice)
    once: bool = False
    plain: bool = False
    every_s: float | None = None
    ended_hours: float = 24.0

    def __post_init__(self) -> None:
        if self.every_s is not None and self.every_s <= 0:
            raise ConfigError(f"every_s: {self.every_s:g} is not above 0")
        if self.ended_hours < 0:
            raise ConfigError(f"ended_hours: {self.ended_hours:g} is less than 0")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it is shown: its newest command, and the training that this does now."""

    record: Record
    training: LiveTraining | None = None

    @property
    def is_running(self) -> bool:
        return self.record.ended_as == RUNNING

    @property
    def what(self) -> str:
        """The stage and its task."""
        return " ".join(part for part in (self.record.stage, self.record.task) if part) or "starting"

    @property
    def done(self) -> tuple[int, int, str] | None:
        """How many of how many steps, rows or the like are done."""
        if self.training is not None:
            return self.training.step, self.training.steps, "step"
        return (self.record.done, self.record.total, self.record.unit) if self.record.total else None

    @property
    def left_s(self) -> float | None:
        """Seconds until this part is done, as it was said last."""
        return self.record.left_s if self.training is None else self.training.left_s


def without_flags(words: Sequence[str]) -> list[str]:
    """Turn flags into the `key=value` words that the command line is made of."""
    return [f"{word.removeprefix('--')}=true" if word in _FLAGS else word for word in words]


def main(config: WatchConfig) -> int:
    """Show runs until Ctrl-C, or once.

    Raises:
        ConfigError: there is no such directory, or the screen's library is not installed.
    """
    root = Path(config.run.dir)
    if not root.is_dir():
        raise ConfigError(f"run.dir: {root} is no directory; give the run.dir=DIR of the runs")
    if config.run.name is not None and not (root / config.run.name).is_dir():
        raise ConfigError(f"run.name: {root} has no run '{config.run.name}'")
    try:
        if config.once:
            _print(views(config), root)
        elif config.plain or not sys.stdout.isatty():
            _print_until_nothing_runs(config, root)
        else:
            from pipelines.tools.watch_screen import show_on_screen

            show_on_screen(lambda: views(config), root, config.every_s or 1.0)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def views(config: WatchConfig) -> list[RunView]:
    """Return the runs to show: those that go on, then those that ended lately, the newest first."""
    root = Path(config.run.dir)
    start = root if config.run.name is None else root / config.run.name
    found = []
    for directory in _watched(start, _DEPTH):
        records = records_of(directory)
        running = [record for record in records if record.ended_as == RUNNING]
        found += [_view(record) for record in running or records[-1:]]
    earliest = time.time() - 3600 * config.ended_hours
    shown_ones = [view for view in found if view.is_running or view.record.at >= earliest or config.run.name is not None]
    return sorted(shown_ones, key=lambda view: (not view.is_running, view.record.run if view.is_running else -view.record.at))


def _watched(directory: Path, depth: int) -> list[Path]:
    """Return the directories below one that hold records, links and the store left out."""
    found = [directory] if (directory / DIRECTORY).is_dir() else []
    try:
        below = [entry for entry in sorted(directory.iterdir()) if entry.is_dir() and not entry.is_symlink()]
    except OSError:  # it went away while it was looked at
        return found
    for entry in below if depth else []:
        if entry.name != STORE and not entry.name.startswith("."):
            found += _watched(entry, depth - 1)
    return found


def _view(record: Record) -> RunView:
    is_training = record.ended_as == RUNNING and record.work is not None
    return RunView(record=record, training=read_live(Path(record.work)) if is_training and record.work is not None else None)


def text_of(view: RunView, now: float) -> list[str]:
    """Return a run in lines of text."""
    record = view.record
    if not view.is_running:
        said = f": {record.said}" if record.said else ""
        where = f" in {view.what}" if record.stage else ""
        return [f"{record.run}: {record.ended_as}{where} {spelled(now - record.at)} ago{said}"]
    since = record.started if record.stage_started is None else record.stage_started
    lines = [f"{record.run}: {view.what}, for {spelled(now - since)}"]
    lines += [f"  {line}" for line in (progress_line(view), loss_line(view), expert_line(view)) if line]
    return lines


def progress_line(view: RunView) -> str:
    """Say step of steps, the time left, speed and memory."""
    parts = []
    if view.done is not None:
        done, total, unit = view.done
        what = f"{view.record.doing}: " if view.training is None and view.record.doing else ""
        parts.append(f"{what}{unit} {done:,} of {total:,}")
    if view.left_s is not None:
        parts.append(f"about {spelled(view.left_s)} left")
    if view.training is not None:
        parts += [f"{view.training.tokens_per_s:,.0f} tokens/s", f"memory {said_bytes(view.training.peak_bytes)}"]
    return ", ".join(parts)


def loss_line(view: RunView) -> str:
    """Say the losses by part, the total first."""
    losses = {} if view.training is None else view.training.losses
    names = [*(name for name in _FIRST_LOSSES if name in losses), *(name for name in losses if name not in _FIRST_LOSSES)]
    return "loss " + ", ".join(f"{name} {losses[name]:.3f}" for name in names) if names else ""


def expert_line(view: RunView) -> str:
    """Say which expert has most and which has least of a step's tokens, over an even share, and how many have none."""
    shares = [] if view.training is None else view.training.shares
    loads = [(share * len(layer), i + 1, e + 1) for i, layer in enumerate(shares) for e, share in enumerate(layer)]
    if not loads:
        return ""
    (most, *at_most), (least, *at_least) = max(loads), min(loads)
    idle = sum(load == 0 for load, *_ in loads)
    said = f"experts: most {most:.2f} (layer {at_most[0]}, expert {at_most[1]}), least {least:.2f} (layer {at_least[0]}, expert "
    return f"{said}{at_least[1]}) of an even share, {idle} of {len(loads)} without a token"


def _lines(found: Sequence[RunView], root: Path) -> list[str]:
    now = time.time()
    lines = [line for view in found for line in text_of(view, now)]
    return lines or [f"{root}: nothing runs, and nothing ended lately"]


def _print(found: Sequence[RunView], root: Path) -> None:
    sys.stdout.write(shown("\n".join(_lines(found, root)) + "\n", kept="\n"))
    sys.stdout.flush()


def _print_until_nothing_runs(config: WatchConfig, root: Path) -> None:
    while True:
        found = views(config)
        _print(found, root)
        if not any(view.is_running for view in found):
            return
        time.sleep(config.every_s or 10.0)
