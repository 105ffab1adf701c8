"""Points beside each other: what finished runs say of each task, and the baseline that they are compared with.

A point is a run, of a sweep or by itself. Runs over different rows are refused, never compared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.registry import suggest
from pipelines.stages.copied_rows import said_of_copies
from pipelines.walk.finished_runs import read_result, settings_of, some_of, tasks_of
from pipelines.walk.paired_statistics import RunResult, Summary, apart, check_comparable, summarise, variant_of
from pipelines.walk.sweep_record import PointRecord
from pseudo_label.comparison import Difference, paired_difference

logger = logging.getLogger("pipelines")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Points with their results by task; `baseline` is by task, and absent for a task that the baseline was not run on.

    `left_out` says what of the points is not finished.
    """

    points: tuple[PointRecord, ...]
    results: dict[str, list[RunResult]]
    baseline: dict[str, RunResult]
    baseline_variant: str | None
    left_out: tuple[str, ...]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(result.variant for found in self.results.values() for result in found))

    @property
    def said_of_copies(self) -> list[str]:
        """A line for each task of whose measured rows some are copies of others; all results of a task are over the same rows."""
        counts = {task: (found[0].n_copies, len(found[0].all_gold)) for task, found in self.results.items()}
        return [f"{task}: {said_of_copies(n, n + n_kept)}." for task, (n, n_kept) in counts.items() if n]

    def variant_of(self, run: str) -> str:
        """Return the variant that a run counts for."""
        return next((one.variant for found in self.results.values() for one in found if one.run == run), variant_of(run))

    def of_point(self, point: PointRecord) -> dict[str, RunResult]:
        """Return a point's results by task."""
        return {task: one for task, found in self.results.items() for one in found if one.run == point.run}

    def of_variant(self, name: str) -> dict[str, list[RunResult]]:
        """Return a variant's results by task, one for each seed."""
        some = {task: [one for one in found if one.variant == name] for task, found in self.results.items()}
        return {task: found for task, found in some.items() if found}

    def difference(self, task: str, result: RunResult) -> Difference | None:
        """Return how the deciding answers differ in accuracy from the baseline's, paired by row; None where there is none."""
        base = self.baseline.get(task)
        if base is None or base is result or result.decides is None or base.decides is None:
            return None
        return paired_difference(result.right_N(result.decides), base.right_N(base.decides))

    def summaries(self, task: str) -> list[Summary]:
        """Return each variant's summary over seeds, against the baseline's variant."""
        by_variant = {name: found[task] for name in self.variants if task in (found := self.of_variant(name))}
        known = by_variant.get(self.baseline_variant or "", [])
        return [summarise(name, some, known) for name, some in by_variant.items()]


def read_points(root: Path, points: Sequence[PointRecord], tasks: Sequence[str] = ()) -> Comparison:
    """Read the results of all points that are done, of `tasks` or all; there is no baseline yet.

    Raises:
        ConfigError: two runs are the same seed of one variant.
        DataError: runs were measured on different rows.
    """
    results: dict[str, list[RunResult]] = {}
    unfinished: dict[tuple[str, str], list[str]] = {}
    for point in points:
        there = tasks_of(root / point.run)
        wanted = [task for task in there if not tasks or task in tasks] if point.is_done else []
        if point.is_done and not wanted:
            unfinished[point.run, "nothing evaluated"] = []
        for task in wanted:
            try:
                results.setdefault(task, []).append(read_result(root / point.run, point.run, task))
            except CheckpointError as error:
                unfinished.setdefault((point.run, str(error)), []).append(task)
    results = {task: found for task, found in sorted(results.items()) if found}
    every = [result for found in results.values() for result in found]
    no_seeds = apart(every, {run: settings_of(root / run) for run in dict.fromkeys(result.run for result in every)})
    for run, reason in no_seeds.items():
        logger.warning("%s: is a line of its own, no seed of '%s': %s", run, variant_of(run), reason)
    results = {task: [replace(one, is_seed=one.run not in no_seeds) for one in found] for task, found in results.items()}
    for task, found in results.items():
        check_comparable(task, found)
    said = [f"{run} ({', '.join(some)}{': ' if some else ''}{reason})" for (run, reason), some in unfinished.items()]
    return Comparison(points=tuple(points), results=results, baseline={}, baseline_variant=None, left_out=tuple(said))


def against(found: Comparison, baseline: str | None) -> Comparison:
    """Return the comparison with a baseline: a point, a run or a variant by name; None takes the first point that has results.

    A name that has no results gives no baseline.
    """
    measured = {result.run for some in found.results.values() for result in some}
    having = [point for point in found.points if point.run in measured]
    named = having if baseline is None else [point for point in having if baseline in (point.name, point.run)]
    if not named and baseline is not None:
        named = [point for point in having if found.variant_of(point.run) in (baseline, variant_of(baseline))]
    if not named:
        return found
    first = named[0]
    return replace(found, baseline=_by_task(found, first), baseline_variant=found.variant_of(first.run))


def check_baseline(name: str | None, points: Sequence[str]) -> None:
    """Raise ConfigError where no point or run has the baseline's name."""
    if name is not None and name not in points:
        raise ConfigError(f"baseline: no point or run is '{name}'{suggest(name, list(points))}; there are: {some_of(points)}")


def _by_task(comparison: Comparison, first: PointRecord) -> dict[str, RunResult]:
    """Return the baseline of each task: the point itself, or the one that differs from it in the task only."""
    results, variant = comparison.results, comparison.variant_of(first.run)
    twins = [point.run for point in comparison.points if point.settings and point.other_settings == first.other_settings]
    seeds = {result.seed for some in results.values() for result in some if result.run == first.run}
    found = {}
    for task, some in results.items():
        by_run = {result.run: result for result in some}
        same = [one.run for one in some if one.variant == variant and one.seed in seeds]
        run = next((name for name in (first.run, *twins, *same) if name in by_run), None)
        if run is not None:
            found[task] = by_run[run]
    return found
