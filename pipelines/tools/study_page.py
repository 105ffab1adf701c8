"""The tables of a study as Markdown, and as a page with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report_page.charts import Chart, Interval, interval_chart
from pipelines.report_page.page import Section, note, page, table
from pipelines.walk.paired_statistics import Summary
from pseudo_label.comparison import RESAMPLES

_LEGEND = (
    "Accuracies are in %, over dev and few together, with their 95 % interval: Wilson's where there is one list of answers, else a "
    "bootstrap over rows of the mean over seeds; in parentheses the seeds' own values (of many, the smallest and the largest).",
    f"Differences are in points, paired by row, with a bootstrap interval over rows ({RESAMPLES:,} resamples); '=' marks intervals "
    "that include 0. Intervals say nothing of other seeds: compare the seeds' own values for that. p is McNemar's (exact, "
    "two-sided), where both variants have one seed.",
    "'Lexical' is the labeller without a model. 'Best without adapting' is the best of it and of the base under any method, chosen "
    "on the rows that are measured, which favours it.",
    "Held-out loss is in nats per token of all parts, before -> after adaptation. Entropy, largest share and share drift are those "
    "of the adapted model's raw answers. Label accuracy is that of labelled rows as sure as the selected ones. Scoring is that of "
    "dev and few by the adapted model. Beside accuracies, values are means over seeds; - stands for what a run does not say.",
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells under a header, for Markdown and for the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(tables: Mapping[str, Sequence[Table]], ends: Sequence[str]) -> str:
    parts = ["# Study", *_LEGEND]
    for task, some in tables.items():
        for found in some:
            parts += [f"## {task} {found.title}", _markdown_table(found)]
    return "\n\n".join([*parts, *ends]) + "\n"


def _markdown_table(found: Table) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (found.header, *found.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(found.header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def study_page(
    tables: Mapping[str, Sequence[Table]], summaries: Mapping[str, Sequence[Summary]], baseline: str | None, ends: Sequence[str]
) -> str:
    sections = [Section(title="How to read this", parts=[note(text) for text in _LEGEND])]
    for task, some in tables.items():
        charts = [_accuracy_chart(summaries[task]), *_difference_chart(summaries[task], baseline)]
        sections.append(Section(title=f"{task} {some[0].title}", parts=[*charts, table(some[0].header, some[0].rows)]))
        sections += [Section(title=f"{task} {t.title}", parts=[table(t.header, t.rows)]) for t in some[1:]]
    if ends:
        sections.append(Section(title="Left out", parts=[note(text) for text in ends]))
    return page("Study", sections)


def _accuracy_chart(summaries: Sequence[Summary]) -> Chart:
    intervals = [
        Interval(row=s.variant, series=" ".join(who), value=100 * x.value, low=100 * x.ci95[0], high=100 * x.ci95[1])
        for who in dict.fromkeys(who for s in summaries for who in s.scores)
        for s in summaries
        if (x := s.scores.get(who)) is not None
    ]
    return interval_chart("Accuracy with 95 % interval, by variant", intervals, 0, 100, " %")


def _difference_chart(summaries: Sequence[Summary], baseline: str | None) -> list[Chart]:
    intervals = [
        Interval(row=s.variant, series="adapted raw", value=100 * x.value, low=100 * x.ci95[0], high=100 * x.ci95[1])
        for s in summaries
        if s.variant != baseline and (x := s.difference) is not None
    ]
    if not intervals:
        return []
    low, high = min(0.0, *(item.low for item in intervals)), max(0.0, *(item.high for item in intervals))
    return [interval_chart(f"Points over {baseline}, with 95 % interval", intervals, low, max(high, low + 1), "")]
