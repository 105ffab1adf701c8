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

from adapt.core.errors import ConfigError, shown
from pipelines.tools.watch_views import RunView, text_of, views

_FLAGS = ("--once", "--plain")


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
            _print(_views(config), root)
        elif config.plain or not sys.stdout.isatty():
            _print_until_nothing_runs(config, root)
        else:
            from pipelines.tools.watch_screen import show_on_screen

            show_on_screen(lambda: _views(config), root, config.every_s or 1.0)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _views(config: WatchConfig) -> list[RunView]:
    return views(Path(config.run.dir), config.run.name, config.ended_hours)


def _lines(found: Sequence[RunView], root: Path) -> list[str]:
    now = time.time()
    lines = [line for view in found for line in text_of(view, now)]
    return lines or [f"{root}: nothing runs, and nothing ended lately"]


def _print(found: Sequence[RunView], root: Path) -> None:
    sys.stdout.write(shown("\n".join(_lines(found, root)) + "\n", kept="\n"))
    sys.stdout.flush()


def _print_until_nothing_runs(config: WatchConfig, root: Path) -> None:
    while True:
        found = _views(config)
        _print(found, root)
        if not any(view.is_running for view in found):
            return
        time.sleep(config.every_s or 10.0)
