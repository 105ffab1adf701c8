"""Ends of sweeps, and runs that are compared: the table over all points, and the page that links them.

A sweep's page is `index.html` in its directory. `report` with `runs` makes the same page of any runs; of a sweep it takes what
`sweep.json` says of points that failed or were not reached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, ConfigError
from adapt.core.faults import writable
from pipelines.config.schema import PipelineConfig
from pipelines.walk.comparison import Comparison, against, check_baseline, read_points
from pipelines.walk.comparison_page import PAGE_FILE, comparison_page, lead_of
from pipelines.walk.comparison_tables import means_table, points_table, text_table
from pipelines.walk.finished_runs import chosen_runs, settings_of
from pipelines.walk.sweep_record import PointRecord, SweepRecord, read_record, write_record

_COMPARED = "comparison.html"


def conclude_sweep(directory: Path, record: SweepRecord) -> str:
    """Write a sweep's record and its page; return the table over all points, and where the page is.

    Points whose results cannot be compared (measured on different rows, say) are listed without a comparison, and the text says so.
    """
    root = directory.parent if not record.points else _root_of(directory, record.points[0])
    with writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory, record)
    said = ""
    try:
        found = against(read_points(root, record.points), record.baseline)
    except AdaptError as error:
        said = f"no comparison: {error}"
        found = Comparison(points=tuple(record.points), results={}, baseline={}, baseline_variant=None, left_out=(said,))
    place = directory / PAGE_FILE
    with writable(directory):
        write_atomically(place, comparison_page(f"Sweep {directory.name}", found, root, directory, command=record.command))
    return "\n".join([*([said] if said else []), *_tables(found), f"sweep: {place}"])


def compare_runs(config: PipelineConfig) -> str:
    """Write the page of `runs`; return their table, and where the page is.

    Raises:
        ConfigError: no such run or baseline, nothing to compare, or `output` is no HTML file.
        DataError: runs were measured on different rows.
    """
    root = Path(config.run.dir)
    target = Path(config.output) if config.output is not None else root / _COMPARED
    if target.suffix != ".html":
        raise ConfigError(f"output: {target} is to be a page; name it {target.with_suffix('.html')}")
    points, command = points_of(root, config.runs)
    check_baseline(config.baseline, [point.name for point in points])
    found = against(read_points(root, points, config.tasks), config.baseline)
    if not found.results:
        said = "; ".join(found.left_out)
        raise ConfigError(f"runs: no finished run to compare{f': {said}' if said else ''}")
    with writable(target.parent):
        write_atomically(target, comparison_page("Compared runs", found, root, target.parent.absolute(), command=command))
    return "\n".join([*_tables(found), f"comparison: {target}"])


def points_of(root: Path, patterns: Sequence[str], key: str = "runs") -> tuple[list[PointRecord], str]:
    """Return the runs that patterns choose as points, and the command of the sweep where they are those of one.

    Of a sweep by its name, points are as `sweep.json` has them, and with them those that other commands left in its directory.
    Other runs are told apart by the settings in which they differ.
    """
    records = {name: record for name in patterns if "/" not in name and (record := read_record(root / name)) is not None}
    known = {point.run: point for record in records.values() for point in record.points}
    there = [name for name in patterns if name not in records or any((root / name).glob("[!.]*/*/"))]
    runs = chosen_runs(root, there, key) if there or not records else []
    plain = [run for run in runs if run not in known and run.partition("/")[0] not in records]
    settings = _differing({run: settings_of(root / run) for run in plain})
    points: list[PointRecord] = []
    for run in dict.fromkeys([*known, *runs]):
        point = known.get(run)
        if point is None:
            sweep, _, name = run.partition("/")
            said = settings[run] if run in settings else _settings_in_name(name, records[sweep])
            point = PointRecord(number=0, name=run, run=run, settings=said, is_done=True)
        short = run.partition("/")[2] if len(patterns) == len(records) == 1 else run
        points.append(replace(point, name=short or run, number=len(points)))
    return points, records[patterns[0]].command if len(patterns) == len(records) == 1 else ""


def _settings_in_name(name: str, record: SweepRecord) -> dict[str, str]:
    """Return what a point's name says of its settings, under the keys of its sweep's other points."""
    keys_by_letters = {re.sub(r"[^\w.+-]", "", key): key for point in record.points for key in point.settings}
    pairs = [part.partition("=") for part in re.split(r",(?=[+~]*[\w.]+=)", name)]
    return {keys_by_letters.get(key, key): value for key, _, value in pairs}


def _root_of(directory: Path, point: PointRecord) -> Path:
    """Return run.dir: the sweep's directory without the name of the run."""
    return directory.parents[len(Path(point.run).parts) - 2]


def _tables(found: Comparison) -> list[str]:
    means = means_table(found)
    has_numbers = found.results or any(point.objective is not None for point in found.points)
    lines = [text_table(points_table(found))] if has_numbers else []
    if means is not None:
        lines.append(f"mean over tasks, %, {means.title}\n{text_table(means)}")
    return [*lead_of(found), *lines]


def _differing(settings: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Keep the settings in which runs differ."""
    names = dict.fromkeys(key for some in settings.values() for key in some)
    kept = [key for key in names if len({some.get(key) for some in settings.values()}) > 1]
    return {run: {key: some[key] for key in kept if key in some} for run, some in settings.items()}
