"""What a report says of answers: classes and their confusion, reliability, and the rows behind the figures.

Legend: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from adapt.core.scorer import FloatArray
from pipelines.report_page.charts import Chart, Interval, Line, heat_map, interval_chart, line_chart
from pipelines.report_page.page import Section, heading, note, table
from pipelines.stages.rows import LABELLED_SPLITS
from pseudo_label.accuracy import accuracy_of
from pseudo_label.comparison import best_unadapted
from pseudo_label.tasks import TaskRow

ADAPTED = "adapted"
_MOST_ROWS = 15
_MOST_CLASSES = 40
_LONGEST_TEXT = 220
_BINS = 10
Who = tuple[str, str]  # model and method


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of a task on its labelled splits, all splits in turn: by (model, method), with confidences from 0 to 1.

    `decides` are the answers that count: those of the adapted model (else of the base) under the run's method.
    """

    task: str
    gold: tuple[str, ...]
    given: Mapping[Who, tuple[str, ...]]
    confidences: Mapping[Who, FloatArray]
    decides: Who

    @classmethod
    def of(cls, task: str, lines: Sequence[Mapping[str, Any]], method: str) -> Answers | None:
        """Join the splits of an evaluation's answers; None where nothing is labelled."""
        gold: list[str] = []
        given: dict[Who, list[str]] = {}
        sure: dict[Who, list[float]] = {}
        for split in LABELLED_SPLITS:
            here = [line for line in lines if line["split"] == split]
            gold += here[0]["gold"] if here else []
            for line in here:
                given.setdefault((line["model"], line["method"]), []).extend(line["answers"])
                sure.setdefault((line["model"], line["method"]), []).extend(line["confidences"])
        whole = {who: tuple(answers) for who, answers in given.items() if len(answers) == len(gold)}
        deciding = [who for who in whole if who[1] == method]
        if not gold or not deciding:
            return None
        last = (ADAPTED, method) if (ADAPTED, method) in whole else deciding[-1]
        confidences = {who: np.asarray(sure[who]) for who in whole}
        return cls(task=task, gold=tuple(gold), given=whole, confidences=confidences, decides=last)

    def right_N(self, who: Who) -> npt.NDArray[np.bool_]:
        return np.asarray([a == g for a, g in zip(self.given[who], self.gold, strict=True)])

    @property
    def best_before(self) -> Who | None:
        """The best one had without adapting, chosen on these rows."""
        return best_unadapted({who: self.right_N(who).astype(np.float64) for who in self.given})


def accuracy_sentence(found: Answers) -> str:
    """Say how right the deciding answers are."""
    right_N = found.right_N(found.decides)
    return f"{100 * right_N.mean():.1f} % of {len(found.gold):,} labelled rows are answered rightly by the {_said(found.decides)}."


def chance_sentence(found: Answers) -> str:
    """Say how right the most frequent label would be."""
    return f"One label throughout would get {100 * max(Counter(found.gold).values()) / len(found.gold):.1f} %."


def answers_section(found: Answers, rows: Sequence[TaskRow]) -> Section:
    """Lay out classes, confusion, reliability and single rows; `rows` may be empty where their texts are not at hand."""
    parts: list[Chart | Markup] = [_by_class(found), _reliability(found)]
    if len(set(found.gold)) <= _MOST_CLASSES:
        parts.append(_confusion(found))
    return Section(title=f"Answers: {found.task}", parts=[*parts, *_single_rows(found, rows)])


def _compared(found: Answers) -> list[Who]:
    """Return whose answers stand beside each other: the best without adapting, and those that decide."""
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
    names = list(dict.fromkeys([name for name, _ in Counter(found.gold).most_common()]))
    counts = Counter(zip(found.gold, found.given[found.decides], strict=True))
    across = [*names, *sorted({answer for _, answer in counts} - set(names))]
    cells = [[float(counts[(gold, answer)]) for answer in across] for gold in names]
    return heat_map(f"Rows by class and answer, {_said(found.decides)}", names, across, cells, ("class", "answer"))


def _reliability(found: Answers) -> Chart:
    lines = [Line(name="perfect", points=[(0.0, 0.0), (1.0, 1.0)])]
    for who in _compared(found):
        sure_N, right_N = found.confidences[who], found.right_N(who)
        bin_N = np.minimum((sure_N * _BINS).astype(np.int64), _BINS - 1)
        places = [bin_N == b for b in range(_BINS) if (bin_N == b).any()]
        points = [(float(sure_N[inside].mean()), float(right_N[inside].mean())) for inside in places]
        lines.append(Line(name=_said(who), points=points))
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
        parts.append(note(f"Against {_said(before)}: {len(better)} rows are right now, {len(worse)} are wrong now."))
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


def _said(who: Who) -> str:
    model, method = who
    return "lexical labeller" if model == method else f"{'adapted model' if model == ADAPTED else model}, {method}"
