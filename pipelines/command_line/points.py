"""A sweep from its first point to its table: what is planned, each point in turn or in a slot, and the end.

Hydra is not imported here: `compose` says which overrides a point has.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.runtime import PREFIX, set_up_logging
from adapt.text.rows.writing import is_streamed
from pipelines.command_line.argument_words import point_name, shown_names
from pipelines.command_line.slots import Slot, free_slot, has_slots, in_own_process, share_out
from pipelines.command_line.sweep import (
    DIED,
    announce,
    begin,
    lock_of_sweep,
    place_of_points,
    record_end,
    recorded,
    recorded_end,
    summary,
    sweep_directory,
    verdict,
)
from pipelines.config.described import GROUPS
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


def refuse_one_output(config: Any, varied: Sequence[str], n_points: int) -> None:
    """Raise ConfigError where several points would write one file at `output`, of which the last would stay.

    `config` are the sweep's settings as plain values, interpolations as they are written; `varied` are its overrides.
    """
    output, stages = config["output"], config["stages"]
    if output is None or n_points < 2 or is_streamed(output) or (stages and not config["runs"] and "predict" not in stages):
        return
    keys = [word.lstrip("+").partition("=")[0] for word in varied]
    named = re.findall(r"\$\{([^}]*)\}", output)
    if "output" in keys or any(_follows(name, key) for name in named for key in keys):
        return
    advice = f"{Path(output).stem}_${{{keys[0] if keys else 'seed'}}}{Path(output).suffix}"
    raise ConfigError(
        f"output: {output} would hold the last of {n_points} points only; put what the points vary into the name, as in "
        f"'output={Path(output).parent / advice}'"
    )


def _follows(name: str, key: str) -> bool:
    """Say whether an interpolation changes with a key; with a group any can, since its file sets several."""
    return ":" in name or "/" in key or key in GROUPS or f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")


def planned_point(number: int, varied: Sequence[str], run_name: str) -> PointRecord:
    """Return a point by the overrides that it varies."""
    name = point_name(varied)
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
        how = in_own_process(lambda: _run_in_slot(point, slot, read, act), lock_of_sweep(place))
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
