"""Runs as `pipelines.watch` shows them: which there are by the files that they leave, and each in lines of text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from adapt.core.artifacts import STORE
from adapt.core.faults import said_bytes
from adapt.core.progress import spelled
from adapt.train.live import LiveTraining, read_live
from pipelines.stages.progress_record import DIRECTORY, RUNNING, Record, records_of

_DEPTH = 4  # of a run's name below run.dir, its sweep's points included
_FIRST_LOSSES = ("total", "context", "prompt", "pseudo_label", "balance")


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


def views(root: Path, name: str | None, ended_hours: float) -> list[RunView]:
    """Return the runs to show: those that go on, then those that ended lately, the newest first.

    With a name they are that run and the points below it, whenever they ended.
    """
    start = root if name is None else root / name
    found = []
    for directory in _watched(start, _DEPTH):
        records = records_of(directory)
        running = [record for record in records if record.ended_as == RUNNING]
        found += [_view(record) for record in running or records[-1:]]
    earliest = time.time() - 3600 * ended_hours
    shown_ones = [view for view in found if view.is_running or view.record.at >= earliest or name is not None]
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
