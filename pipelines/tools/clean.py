"""What nobody needs below a run directory: `python -m pipelines.clean [clean.remove=true]`.

A store goes in (`adapt/core/store_survey.py` says what is needed and why), tables come out: what is kept, by stage and by run,
and what can go. Nothing is removed unless that is asked for.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from adapt.core.artifacts import STORE
from adapt.core.errors import ConfigError, shown
from adapt.core.faults import refuse_closed, said_bytes
from adapt.core.store_removal import remove
from adapt.core.store_survey import Link, Removable, Stored, Survey, survey
from pipelines.config.schema import CleanConfig, PipelineConfig
from pipelines.stages.run import again_command
from pipelines.walk.order import STAGES

_MOST_LINKS = 3
_REMOVES = "clean.remove=true"


def show(config: PipelineConfig, point: str | None) -> None:
    """Print what is kept and what can go; with `clean.remove`, remove it.

    Raises:
        ConfigError: there is no such run directory or place, or something cannot be removed.
    """
    root, settings = Path(config.run.dir), config.clean
    others = [Path(place) for place in settings.keep_for]
    missing = next((place for place in others if not place.is_dir()), None)
    if missing is not None:
        raise ConfigError(f"clean.keep_for: {missing} is no directory; name one whose links or artifacts need what is in {root}")
    if not (root / STORE).is_dir():
        raise ConfigError(f"run.dir: {root} has no {STORE}, so nothing was made there; give run.dir=DIR")
    latest = time.time() - 86_400 * settings.older_than_days

    def is_wanted(one: Removable) -> bool:
        return one.kind in settings.kinds and one.made <= latest

    if settings.remove:
        refuse_closed(root / STORE)
        found, gone = remove(root, lambda: survey(root, others), is_wanted)
    else:
        found = survey(root, others)
        gone = [one for one in found.removable if is_wanted(one)]
    sys.stdout.write(shown("\n".join(_lines(root, found, gone, settings)) + "\n", kept="\n"))
    sys.stdout.flush()


def _lines(root: Path, found: Survey, gone: Sequence[Removable], settings: CleanConfig) -> list[str]:
    lines = [*_kept_by_stage(found.kept), *_kept_by_run(found.kept)]
    if gone:
        lines += ["", "removed:" if settings.remove else "can go:"]
        lines += _table(("kind", "bytes", "written", "what", "why"), [_cells(root, one) for one in gone])
    for kind in dict.fromkeys(one.kind for one in gone):
        some = [one for one in gone if one.kind is kind]
        lines.append(f"{kind.value}: {len(some)}, {said_bytes(sum(one.n_bytes for one in some))}")
    left = [one for one in found.removable if one not in gone]
    if left:
        size = said_bytes(sum(one.n_bytes for one in left))
        lines.append(f"left, by clean.kinds or clean.older_than_days, or begun meanwhile: {len(left)}, {size}")
    if found.in_use:
        lines += ["", "left, since a running command builds or reads it:"]
        lines += _table(("kind", "bytes", "written", "what", "why"), [_cells(root, one) for one in found.in_use])
    if found.dangling:
        lines += ["", "links whose artifact is gone:", *map(_again, found.dangling)]
    lines += [f"note: {note}" for note in found.notes]
    total = said_bytes(sum(one.n_bytes for one in gone))
    if settings.remove:
        lines += ["", f"{_things(gone)} removed, {total}"]
    else:
        lines += ["", f"{_things(gone)} can go, {total}" + (f"; {_REMOVES} removes what is listed" if gone else "")]
    return lines


def _things(gone: Sequence[Removable]) -> str:
    return "1 thing" if len(gone) == 1 else f"{len(gone)} things"


def _kept_by_stage(kept: Sequence[Stored]) -> list[str]:
    rows = []
    for stage in dict.fromkeys(one.stage for one in kept):
        some = [one for one in kept if one.stage == stage]
        written = f"{_day(min(one.made for one in some))} to {_day(max(one.made for one in some))}"
        rows.append((stage, str(len(some)), said_bytes(sum(one.n_bytes for one in some)), written))
    total = (("all", str(len(kept)), said_bytes(sum(one.n_bytes for one in kept)), ""),) if kept else ()
    return ["kept, by stage:", *_table(("stage", "results", "bytes", "written"), [*rows, *total])]


def _kept_by_run(kept: Sequence[Stored]) -> list[str]:
    rows = []
    for one in kept:
        some = [*one.links, *(f"read by {reader}" for reader in one.readers)]
        rest = f" and {len(some) - _MOST_LINKS} more" if len(some) > _MOST_LINKS else ""
        rows.append((one.name, said_bytes(one.n_bytes), _day(one.made), ", ".join(some[:_MOST_LINKS]) + rest))
    return ["", "kept, and for whom:", *_table(("result", "bytes", "written", "linked as"), rows)] if rows else []


def _cells(root: Path, one: Removable) -> tuple[str, ...]:
    place = one.place.resolve() if not one.place.is_symlink() else one.place.absolute()
    name = place.relative_to(root.resolve()) if place.is_relative_to(root.resolve()) else place
    return (one.kind.value, said_bytes(one.n_bytes), _day(one.made), str(name), one.reason)


def _again(link: Link) -> str:
    """Say how to make what a link led to."""
    stage = link.artifact.partition("/")[0]
    run, task = _run_and_task(link.name, stage)
    if run is None or stage not in STAGES:
        return f"  {link.name}: is made again by the stage that needs it"
    return f"  {link.name}: run `{again_command(stage, run, task)}` again"


def _run_and_task(name: str, stage: str) -> tuple[str | None, str | None]:
    """Return the run and the task of a link `<run>/<stage>[/<task>]`; None for a link of another form."""
    parts = name.split("/")
    if len(parts) > 1 and parts[-1] == stage:
        return "/".join(parts[:-1]), None
    if len(parts) > 2 and parts[-2] == stage:
        return "/".join(parts[:-2]), parts[-1]
    return None, None


def _day(made: float) -> str:
    return datetime.datetime.fromtimestamp(made).strftime("%Y-%m-%d %H:%M")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["  nothing"]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
    ]
