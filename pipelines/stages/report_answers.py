"""The report's sections on answers: accuracy by class, confusion, reliability, and single rows.

Legend: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from adapt.core.errors import counted
from pipelines.report_page.charts import Chart, Interval, Line, heat_map, interval_chart, line_chart
from pipelines.report_page.page import Section, heading, note, table
from pipelines.stages.answers import Answers, Who
from pipelines.stages.evaluated_model import ADAPTED
from pseudo_label.accuracy import accuracy_of
from pseudo_label.decision import Method
from pseudo_label.tasks import TaskRow

_MOST_ROWS = 15
_MOST_CLASSES = 40
_LONGEST_TEXT = 220


def accuracy_sentence(found: Answers) -> str:
    """Say how right the deciding answers are."""
    right_N = found.right_N(found.decides)
    return f"{100 * right_N.mean():.1f} % of {len(found.gold):,} labelled rows are answered rightly by the {_said(found.decides)}."


def chance_sentence(found: Answers) -> str:
    """Say how right the most frequent label would be."""
    return f"One label throughout would get {100 * max(Counter(found.gold).values()) / len(found.gold):.1f} %."


def lexical_sentence(found: Answers) -> list[str]:
    """Say how right the labeller without a model is, where it was asked."""
    who = (Method.LEXICAL.value, Method.LEXICAL.value)
    return [f"The lexical labeller by itself gets {100 * found.right_N(who).mean():.1f} %."] if who in found.given else []


def answers_section(found: Answers, rows: Sequence[TaskRow]) -> Section:
    """Lay out classes, confusion, reliability and single rows; `rows` may be empty where their texts are not at hand."""
    parts: list[Chart | Markup] = [_by_class(found), _reliability(found)]
    if len(set(found.gold)) <= _MOST_CLASSES:
        parts.append(_confusion(found))
    return Section(title=f"Answers: {found.task}", parts=[*parts, *_single_rows(found, rows)])


def _compared(found: Answers) -> list[Who]:
    """Return the answers to compare: the best without adapting, and those that decide."""
    before = found.best_before
    return [found.decides] if before is None or before == found.decides else [before, found.decides]


def _by_class(found: Answers) -> Chart:
    intervals = []
    for name, count in Counter(found.gold).most_common(_MOST_CLASSES):
        for who in _compared(found):
            own = [answer for answer, gold in zip(found.given[who], found.gold, strict=True) if gold == name]
            share = accuracy_of(own, [name] * count)
            low, high = (100 * end for end in share.ci95)
            intervals.append(Interval(row=name, series=_said(who), value=100 * share.accuracy, low=low, high=high))
    return interval_chart("Rows of each class that are answered rightly, with 95 % interval", intervals, 0, 100, " %")


def _confusion(found: Answers) -> Chart:
    names = [name for name, _ in Counter(found.gold).most_common()]
    counts = found.confusion()
    across = [*names, *sorted({answer for _, answer in counts} - set(names))]
    cells = [[float(counts[gold, answer]) for answer in across] for gold in names]
    return heat_map(f"Rows by class and answer, {_said(found.decides)}", names, across, cells, ("class", "answer"))


def _reliability(found: Answers) -> Chart:
    lines = [Line(name="perfect", points=[(0.0, 0.0), (1.0, 1.0)])]
    for who in _compared(found):
        lines.append(Line(name=_said(who), points=[(one.confidence, one.accuracy) for one in found.reliability(who)]))
    return line_chart("Reliability: share answered rightly by confidence", lines, "confidence")


def _single_rows(found: Answers, rows: Sequence[TaskRow]) -> list[Markup]:
    """Return tables of rows that adaptation changed, of the surest mistakes, and of the least sure answers."""
    if not rows:
        return [note("Texts of single rows are not shown: data.root is not given, or its rows are not those that were measured.")]
    own, sure_N = found.right_N(found.decides), found.confidences[found.decides]
    order = np.argsort(-sure_N, kind="stable")
    parts: list[Markup] = []
    before = found.best_before
    if before is not None and before != found.decides:
        other = found.right_N(before)
        better, worse = [i for i in order if own[i] and not other[i]], [i for i in order if other[i] and not own[i]]
        parts.append(heading("Rows that changed"))
        parts.append(
            note(f"Against {_said(before)}: {_now(counted(len(better), 'row'), 'right')}, {_now(str(len(worse)), 'wrong')}.")
        )
        parts += _listed("Right now", found, rows, better, before) + _listed("Wrong now", found, rows, worse, before)
    wrong = [i for i in order if not own[i]]
    unsure = [int(i) for i in order[::-1]]
    return [
        *parts,
        *_listed("Surest mistakes", found, rows, wrong, None),
        *_listed("Least sure answers", found, rows, unsure, None),
    ]


def _listed(title: str, found: Answers, rows: Sequence[TaskRow], places: Sequence[int], before: Who | None) -> list[Markup]:
    if not places:
        return []
    header = ["text", "label", "answer", *(["answer before"] if before else []), "confidence"]
    cells = [
        [
            _text_of(rows[i]),
            found.gold[i],
            found.given[found.decides][i],
            *([found.given[before][i]] if before else []),
            f"{found.confidences[found.decides][i]:.2f}",
        ]
        for i in places[:_MOST_ROWS]
    ]
    return [heading(f"{title} ({min(len(places), _MOST_ROWS)} of {len(places)})"), table(header, cells)]


def _text_of(row: TaskRow) -> str:
    text = " | ".join(row.texts.values())
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def _now(count: str, what: str) -> str:
    return f"{count} {'is' if count.split()[0] == '1' else 'are'} {what} now"


def _said(who: Who) -> str:
    model, method = who
    if method == Method.LEXICAL.value:
        return "taught lexical labeller" if model == ADAPTED else "lexical labeller"
    return f"{'adapted model' if model == ADAPTED else model}, {method}"
