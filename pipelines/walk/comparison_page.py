"""The page of a sweep, of a study, and of runs that are compared: one HTML file that links the pages of the runs.

Points go in with their results by task (`Comparison`). On top is how many are done and which is best; then a table that sorts and
filters, means over tasks, the settings that differ, and each task's accuracies and differences to the baseline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from pipelines.report_page.charts import Chart, Choice, Interval, choice_chart, interval_chart
from pipelines.report_page.filter_table import Cell, Column, filter_table
from pipelines.report_page.page import Section, note, page, table
from pipelines.stages.products import REPORT_FILE
from pipelines.walk.comparison import Comparison
from pipelines.walk.comparison_tables import (
    LEGEND,
    POINTS_LEGEND,
    Table,
    accuracies_table,
    criteria_table,
    means_table,
    points_table,
)
from pipelines.walk.paired_statistics import LEXICAL, RunResult, Summary, score_of
from pipelines.walk.sweep_record import DONE, FAILED, MISSING, PointRecord

PAGE_FILE = "index.html"
_TASK_KEYS = ("task", "tasks")
_MOST_CHARTS = 12
_MOST_DOTS = 80


def comparison_page(
    title: str,
    found: Comparison,
    root: Path,
    place: Path,
    *,
    command: str = "",
    tables: Mapping[str, Sequence[Table]] | None = None,
) -> str:
    """Return the page; `root` is run.dir, `place` the directory that the page goes to, `tables` are each task's (None: all)."""
    tables = task_tables(found) if tables is None else tables
    means = means_table(found)
    settings = differing_settings(found.points)
    failed = [note(f"{point.name}: {point.error}") for point in found.points if point.error is not None]
    sections = [Section(title="Points", parts=[_points(found, settings, root, place), *failed])]
    if means is not None:
        sections.append(Section(title="Mean over tasks", parts=[note(f"In %, {means.title}."), table(means.header, means.rows)]))
    charts = _setting_charts(found, settings)
    if charts:
        sections.append(Section(title="Settings that differ", parts=charts))
    for task, some in tables.items():
        drawn = [*_point_charts(found, task), *_variant_charts(found, task)]
        sections.append(Section(title=f"{task} {some[0].title}", parts=[*drawn, table(some[0].header, some[0].rows)]))
        sections += [Section(title=f"{task} {one.title}", parts=[table(one.header, one.rows)]) for one in some[1:]]
    if found.left_out:
        sections.append(Section(title="Left out", parts=[note(text) for text in found.left_out]))
    sections.append(Section(title="How to read this", parts=[note(text) for text in (*POINTS_LEGEND, *LEGEND)]))
    if command:
        sections.append(Section(title="Command", parts=[note(command)]))
    return page(title, sections, lead_of(found))


def task_tables(found: Comparison) -> dict[str, list[Table]]:
    """Return each task's tables: variants, and criteria where they were compared."""
    tables: dict[str, list[Table]] = {}
    for task, results in found.results.items():
        main = accuracies_table(results, found.summaries(task), found.baseline_variant)
        tables[task] = [one for one in (main, criteria_table(results)) if one is not None]
    return tables


def lead_of(found: Comparison) -> list[str]:
    """Return what came out, in sentences: how many points are done, and the best point of each task."""
    counts = {status: sum(point.status == status for point in found.points) for status in (DONE, FAILED, MISSING)}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines = [f"{len(found.points)} points: {said}." + (f" Baseline: {_baseline_label(found)}." if found.baseline else "")]
    judged = [point.objective for point in found.points if point.objective is not None]
    if len(judged) > 1:
        top = max(judged)
        if top == min(judged):
            lines.append(f"Objective: {top:.4f} at all {len(judged)} points; it depends on nothing that was varied.")
        else:
            first = next(point for point in found.points if point.objective == top)
            lines.append(f"Objective: best at {labels_of(found.points)[first.run]} with {top:.4f}.")
    for task, results in found.results.items():
        deciding = [(result, score_of([result], who)) for result in results if (who := result.decides) is not None]
        if len(deciding) < 2:
            continue
        best, score = max(deciding, key=lambda one: one[1].value)
        gain = found.difference(task, best)
        low, high = (100 * end for end in score.ci95)
        text = f"{task}: {_name(found, best)} is best of {len(deciding)} with {100 * score.value:.1f} % [{low:.1f}, {high:.1f}]"
        if gain is not None:
            ends = [100 * end for end in gain.ci95]
            text += f", {100 * gain.value:+.1f} points over the baseline [{ends[0]:+.1f}, {ends[1]:+.1f}]"
        lines.append(f"{text}; it was chosen on the rows that are measured, which favours it.")
    return lines + found.said_of_copies


def differing_settings(points: Sequence[PointRecord]) -> list[str]:
    """Return the settings in which points differ, in their order."""
    keys = dict.fromkeys(key for point in points for key in point.settings)
    return [key for key in keys if len({point.settings.get(key) for point in points}) > 1]


def _points(found: Comparison, settings: Sequence[str], root: Path, place: Path) -> Markup:
    """Return the table of points, with a column for each setting that differs."""
    laid = points_table(found)
    shown = [key for key in settings if key not in _TASK_KEYS]
    at = {name: number for number, name in enumerate(laid.header)}
    by_name = {point.name: point for point in found.points}
    labels = labels_of(found.points)
    links = {point.name: _link(point, root, place) for point in found.points}
    rows = []
    for cells in laid.rows:
        point = by_name[cells[0]]
        named = next((point.settings[key] for key in _TASK_KEYS if key in point.settings), "-")
        task = named if cells[at["task"]] == "-" else cells[at["task"]]
        rows.append(
            [
                Cell(text=labels[point.run], link=links[point.name], kind="name", title=point.name),
                Cell(text=point.status, kind="text" if point.status == DONE else point.status, title=point.error or ""),
                Cell(text=task),
                *[Cell(text=point.settings.get(key, "-"), kind=_kind(point.settings.get(key, "-"))) for key in shown],
                *[Cell(text=cell, kind=_kind(cell)) for cell in cells[at["rows"] : at["status"]]],
            ]
        )
    short = _short_keys(shown)
    header = [
        Column(name="point"),
        Column(name="status", is_chosen_by=True),
        Column(name="task", is_chosen_by=True),
        *[Column(name=short[key], title=key if short[key] != key else "", is_chosen_by=True) for key in shown],
        *[Column(name=name) for name in laid.header[at["rows"] : at["status"]]],
    ]
    return filter_table("points", header, rows)


def _kind(cell: str) -> str:
    return "number" if cell[:1].isdigit() or cell[:1] in ("+", "-", ".") else "text"


def _link(point: PointRecord, root: Path, place: Path) -> str | None:
    """Return where a point's page is, from the place of this one; None where it has none."""
    page_of_run = root / point.run / "report" / REPORT_FILE
    return quote(os.path.relpath(page_of_run, place)) if page_of_run.is_file() else None


def _baseline_label(found: Comparison) -> str:
    return " and ".join(dict.fromkeys(_name(found, result) for result in found.baseline.values()))


def labels_of(points: Sequence[PointRecord]) -> dict[str, str]:
    """Return a short label for each run: the settings in which points differ, without the task; its name where it has none.

    A key is shown by its last part where that is enough.
    """
    keys = [key for key in differing_settings(points) if key not in _TASK_KEYS]
    short = _short_keys(keys)
    found = {}
    for point in points:
        parts = [f"{short[key]}={point.settings[key]}" for key in keys if key in point.settings]
        found[point.run] = ", ".join(parts) if parts and point.name not in point.settings and "=" in point.name else point.name
    return found


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return each key's last part where that tells it apart, else the key."""
    last = {key: re.split(r"[./]", key)[-1] for key in keys}
    return {key: last[key] if list(last.values()).count(last[key]) == 1 else key for key in keys}


def _name(found: Comparison, result: RunResult) -> str:
    return labels_of(found.points).get(result.run, result.run)


def _interval(row: str, series: str, value: float, ci95: Sequence[float]) -> Interval:
    return Interval(row=row, series=series, value=100 * value, low=100 * ci95[0], high=100 * ci95[1])


def _point_charts(found: Comparison, task: str) -> list[Chart]:
    """Draw each point's accuracies by the deciding method, and its difference to the baseline."""
    results = found.results[task]
    if not 2 <= len(results) <= _MOST_DOTS:
        return []
    intervals = []
    lexical = {result.answers[LEXICAL] for result in results if LEXICAL in result.answers}
    if len(lexical) == 1:
        one = next(result for result in results if LEXICAL in result.answers)
        score = score_of([one], LEXICAL)
        intervals.append(_interval("all points", "lexical", score.value, score.ci95))
    for result in results:
        for who in (("base", result.method), ("adapted", result.method)):
            if who in result.answers:
                score = score_of([result], who)
                intervals.append(_interval(_name(found, result), who[0], score.value, score.ci95))
    charts = [interval_chart(f"{task}: accuracy with 95 % interval", intervals, 0, 100, " %")]
    gains = [(result, gain) for result in results if (gain := found.difference(task, result)) is not None]
    if gains:
        ends = [_interval(_name(found, result), result.method, gain.value, gain.ci95) for result, gain in gains]
        charts.append(_around_zero(f"{task}: points over {_name(found, found.baseline[task])}", ends))
    return charts


def _variant_charts(found: Comparison, task: str) -> list[Chart]:
    """Draw each variant's accuracies by every method, and its difference to the baseline, where variants have several seeds."""
    summaries = found.summaries(task)
    if len(summaries) == len(found.results[task]) > 1:
        return []
    return [_accuracy_chart(summaries), *_difference_chart(summaries, found.baseline_variant)]


def _accuracy_chart(summaries: Sequence[Summary]) -> Chart:
    intervals = [
        _interval(s.variant, " ".join(who), x.value, x.ci95)
        for who in dict.fromkeys(who for s in summaries for who in s.scores)
        for s in summaries
        if (x := s.scores.get(who)) is not None
    ]
    return interval_chart("Accuracy with 95 % interval, by variant", intervals, 0, 100, " %")


def _difference_chart(summaries: Sequence[Summary], baseline: str | None) -> list[Chart]:
    intervals = [
        _interval(s.variant, "adapted raw", x.value, x.ci95)
        for s in summaries
        if s.variant != baseline and (x := s.difference) is not None
    ]
    return [_around_zero(f"Points over {baseline}, with 95 % interval", intervals)] if intervals else []


def _around_zero(title: str, intervals: Sequence[Interval]) -> Chart:
    low, high = min(0.0, *(item.low for item in intervals)), max(0.0, *(item.high for item in intervals))
    margin = max(0.05 * (high - low), 0.5)
    return interval_chart(title, intervals, low - margin, high + margin, "")


def _setting_charts(found: Comparison, settings: Sequence[str]) -> list[Chart]:
    """Draw, for each setting that differs, the accuracy of every point over the setting's values: small multiples."""
    by_run = {point.run: point for point in found.points}
    charts = []
    for key in [key for key in settings if key not in _TASK_KEYS][:_MOST_CHARTS]:
        choices = []
        for task, results in found.results.items():
            for result in results:
                who, value = result.decides, by_run[result.run].settings.get(key)
                if who is not None and value is not None:
                    score = score_of([result], who)
                    low, high = (100 * end for end in score.ci95)
                    name = _name(found, result)
                    choices.append(Choice(choice=value, series=task, name=name, value=100 * score.value, low=low, high=high))
        if len({one.choice for one in choices}) > 1:
            charts.append(choice_chart(f"accuracy by {key}", sorted(choices, key=_order), key, " %"))
    return charts


def _order(one: Choice) -> tuple[bool, float, str]:
    try:
        return False, float(one.choice), ""
    except ValueError:
        return True, 0.0, one.choice
