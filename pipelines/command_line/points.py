"""A sweep from its first point to its table: what is planned, each point in turn or in a slot, and the end.

Hydra is not imported here: `compose` says which overrides a point has.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.runtime import PREFIX, set_up_logging
from pipelines.command_line.argument_words import loses_signs, point_name, shown_names
from pipelines.command_line.slots import Slot, free_slot, has_slots, in_own_process, share_out
from pipelines.command_line.sweep import (
    DIED,
    announce,
    begin,
    place_of_points,
    planned,
    record_end,
    recorded,
    recorded_end,
    summary,
    sweep_directory,
    verdict,
)
from pipelines.config.schema import PipelineConfig
from pipelines.config.sweep_settings import Objective
from pipelines.ranks.launch import terminate
from pipelines.walk.sweep_record import PointRecord, SweepRecord, settings_in

logger = logging.getLogger("pipelines")
Act = Callable[[PipelineConfig, str | None], None]
_QUIET = ("hydra_plugins.hydra_optuna_sweeper._impl", "optuna.storages._in_memory", "optuna.storages._rdb.storage")


def start_sweep(directory: Path, plan: SweepRecord, n_slots: int | None) -> None:
    """Make ready for the points of a sweep; `n_slots` is how many of them run side by side on this machine, None for no slots.

    Raises:
        ConfigError: the baseline is no point, or points would search without a number to go by.
    """
    is_search = not plan.points
    if is_search and plan.objective == Objective.NONE.value:
        raise ConfigError("hydra/sweeper: a search needs a number to go by; set sweep.objective=label_free or accuracy")
    names = [point.name for point in plan.points]
    if plan.baseline is not None and names and plan.baseline not in names:
        from pipelines.walk.comparison import check_baseline

        check_baseline(plan.baseline, names)
    for name in _QUIET:  # what they say of a point, the point has said
        logging.getLogger(name).setLevel(logging.ERROR)
    begin(directory, plan)
    place = place_of_points()
    if n_slots is not None and place is not None:
        share_out(place, n_slots)


def planned_points(varied: Sequence[Sequence[str]], run_name: str) -> list[PointRecord]:
    """Return the points of a sweep by the overrides that each varies. Those that would have one name get a digest each."""
    counts = Counter(point_name(words) for words in varied)
    return [_point(number, words, run_name, is_of_its_own=counts[point_name(words)] == 1) for number, words in enumerate(varied)]


def point_of(number: int, varied: Sequence[str], run_name: str) -> PointRecord:
    """Return a point of the running sweep, as it was planned.

    A search plans no points: a name that lacks signs of its settings gets a digest, whichever points come.
    """
    there = planned().points
    return there[number] if there else _point(number, varied, run_name, is_of_its_own=not loses_signs(varied))


def _point(number: int, varied: Sequence[str], run_name: str, *, is_of_its_own: bool) -> PointRecord:
    name = point_name(varied, with_digest=not is_of_its_own)
    return PointRecord(
        number=number, name=name, run=f"{run_name}/{name}", settings=settings_in([shown_names(word) for word in varied])
    )


def run_point(point: PointRecord, read: Callable[[], PipelineConfig], act: Act, *, is_elsewhere: bool) -> float | None:
    """Run one point; return the number that a search goes by, None where the point failed or none is asked for.

    `read` gives the point's configuration, and raises what is wrong with it. A point in a process of a launcher that starts
    several on this machine waits for a slot, and runs in a process of its own.
    """
    place = place_of_points()
    if place is None or not is_elsewhere or not has_slots(place):
        announce(point)
        _run_recorded(point, read, act)
        return recorded_end(point.number).objective
    with free_slot(place) as slot:
        announce(point, slot.words)
        record_end(replace(point, error=DIED))
        how = in_own_process(lambda: _run_in_slot(point, slot, read, act))
        if how is not None:
            record_end(replace(point, error=how))
            logger.info("%s failed: %s", point.name, how)
        return recorded_end(point.number).objective


def end_sweep(record: SweepRecord) -> str | None:
    """Write the sweep's page, say how its points ended, and return what is left to do, in one line; None where all are done."""
    from pipelines.walk.compared_runs import conclude_sweep  # numpy and the charts, which composing does without

    try:
        said = conclude_sweep(sweep_directory(), record)
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()
    except AdaptError as error:
        logger.warning("the sweep's page is not written: %s", error)
    logger.info("%s", summary(record))
    return verdict(record)


def _run_recorded(point: PointRecord, read: Callable[[], PipelineConfig], act: Act) -> None:
    with recorded(point) as reached:
        config = read()
        act(config, point.name)
        if config.sweep.objective is not Objective.NONE:
            from pipelines.walk.objective import objective_of

            reached.objective = objective_of(config, point.name)


def _run_in_slot(point: PointRecord, slot: Slot, read: Callable[[], PipelineConfig], act: Act) -> None:
    os.environ[PREFIX] = f"[{point.number + 1}] "
    set_up_logging()
    signal.signal(signal.SIGTERM, terminate)
    slot.take()

    def read_for_slot() -> PipelineConfig:
        config = read()
        threads = config.engine.threads or slot.threads(config.engine.world_size)
        return replace(config, engine=replace(config.engine, threads=threads))

    _run_recorded(point, read_for_slot, act)
