"""Finished runs to the tables of a study: `python -m pipelines.study run.dir=DIR 'study.runs=[NAME, ...]'`.

Runs go in as artifacts (`evaluate`, and what led to it), Markdown comes out; with `output=FILE.md` it is written there, and a page
with figures beside it. Every point of a sweep is a run of its own, `<run>/<point>`; a pattern without a slash takes a run with all
its points. Runs that differ only in their seed are one variant (`paired_statistics.variant_of`), a line of its task's table.
`study.baseline=VARIANT` adds how the others differ from it; Hydra wants quotes around a name with a = in it
('study.baseline="sweep/lr=1"'). Runs that are not finished are named at the end; runs over different rows are refused, never
compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import ConfigError, shown
from adapt.core.faults import writable
from adapt.core.registry import suggest
from pipelines.config.schema import PipelineConfig
from pipelines.walk.compared_runs import points_of
from pipelines.walk.comparison import against, read_points
from pipelines.walk.comparison_page import comparison_page, task_tables
from pipelines.walk.comparison_tables import markdown
from pipelines.walk.finished_runs import some_of
from pipelines.walk.paired_statistics import variant_of

NAME = "study"


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the tables of `study.runs`; with `output`, write them there and a page beside it.

    Raises:
        ConfigError: no such run or baseline, or no finished run among them.
        DataError: runs were measured on different rows.
    """
    target, root = _target(config), Path(config.run.dir)
    points, _ = points_of(root, config.study.runs, "study.runs")
    found = read_points(root, points, config.tasks)
    if not found.results:
        raise ConfigError(f"study.runs: no finished run to compare: {'; '.join(found.left_out)}")
    baseline = _baseline(config.study.baseline, found.variants)
    found = found if baseline is None else against(found, baseline)
    tables = task_tables(found)
    left_out = [*found.left_out, *(f"{point.run} ({point.error or 'not reached'})" for point in points if not point.is_done)]
    notes = [*found.said_of_copies, *([f"Left out, not finished: {'; '.join(left_out)}."] if left_out else [])]
    text = markdown(tables, notes)
    if target is not None:
        with writable(target.parent):
            shown_page = comparison_page("Study", found, root, target.parent.absolute(), tables=tables)
            write_atomically(target.with_suffix(".html"), shown_page)
            write_atomically(target, text)
    sys.stdout.write(shown(text, kept="\n"))
    sys.stdout.flush()


def _target(config: PipelineConfig) -> Path | None:
    if config.output is None:
        return None
    target = Path(config.output)
    if target.suffix == ".html":
        raise ConfigError(f"output: {target} is where the page goes; name the Markdown file, {target.with_suffix('.md')} say")
    return target


def _baseline(name: str | None, variants: Sequence[str]) -> str | None:
    """Return the variant that is meant by its own name or by that of one of its runs."""
    if name is None or name in variants:
        return name
    if variant_of(name) in variants:
        return variant_of(name)
    raise ConfigError(
        f"study.baseline: no finished run of study.runs is variant '{name}'{suggest(name, list(variants))}; there are: "
        f"{some_of(variants)}"
    )
