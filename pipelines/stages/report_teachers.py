"""The report's parts on teachers: how right labels of a confidence are, how often teachers agree, and what they dispute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from adapt.core.artifacts import FIGURES_FILE, Artifact
from pipelines.report_page.charts import Chart, Line, heat_map, line_chart
from pipelines.report_page.page import heading, note, table
from pipelines.stages.disagreement import DisputedRow, LabelFigures, TeacherViews
from pipelines.stages.rows import UNLABELED, TaskData
from pseudo_label.store import reading_digest
from pseudo_label.tasks import TaskRow

_MOST_CLASSES = 40
_LONGEST_TEXT = 220


def label_figures(artifact: Artifact) -> LabelFigures:
    """Return what an artifact of labels left for pages; nothing where an earlier version made it."""
    file = artifact.path / FIGURES_FILE
    return LabelFigures.read(file) if file.is_file() else LabelFigures()


def noise_chart(artifact: Artifact) -> list[Chart]:
    """Draw how many of the labels of a confidence are right, on labelled rows; nothing where none were measured."""
    noise = label_figures(artifact).noise
    if not noise:
        return []
    lines = [
        Line(name="perfect", points=[(0.0, 0.0), (1.0, 1.0)]),
        Line(name="right", points=[(one.confidence, one.accuracy) for one in noise]),
        Line(name="share of the rows", points=[(one.confidence, one.n / sum(each.n for each in noise)) for one in noise]),
    ]
    return [line_chart("Reliability of pseudo-labels on labelled rows: share right by confidence", lines, "confidence")]


def teacher_parts(artifact: Artifact, data: TaskData | None) -> list[Chart | Markup]:
    """Lay out what several teachers say of the unlabeled rows; texts are those of `data`, where it is at hand."""
    views = label_figures(artifact).views
    if views is None:
        return []
    names = list(views.agreement)
    cells = [[100 * views.agreement[one][other] for other in names] for one in names]
    parts: list[Chart | Markup] = [
        heading("Views of the teachers"),
        note(f"Of {views.n:,} unlabeled rows {views.n_disputed:,} get several labels from the teachers by themselves."),
        heat_map("Rows that two give the same label, %", names, names, cells, ("teacher", "other teacher"), 100.0),
    ]
    labels = list(dict.fromkeys(label for name in names for label in views.counts[name]))
    if len(labels) <= _MOST_CLASSES:
        counts = [[float(views.counts[name].get(label, 0)) for label in labels] for name in names]
        parts.append(heat_map("Rows by teacher and label", names, labels, counts, ("teacher", "label")))
    return [*parts, *_disputed(views, data)]


def _disputed(views: TeacherViews, data: TaskData | None) -> list[Markup]:
    if not views.disputed:
        return []
    texts = {} if data is None else texts_of(data, views.disputed)
    names = list(views.disputed[0].labels)
    header = ["line", *(["text"] if texts else []), *names]
    rows = [
        [
            str(row.line),
            *([texts.get(row.line, "(changed since)")] if texts else []),
            *(_said(row, name) for name in names),
        ]
        for row in views.disputed
    ]
    shown = f"Rows that teachers dispute most surely ({len(rows)} of {views.n_disputed:,})"
    return [heading(shown), note("In brackets: the largest probability of a teacher's own scores."), table(header, rows)]


def _said(row: DisputedRow, name: str) -> str:
    sure = row.confidences.get(name)
    return row.labels[name] if sure is None else f"{row.labels[name]} ({sure:.2f})"


def has_changed_rows(artifact: Artifact, data: TaskData) -> bool:
    """Say whether rows that the page lists as disputed have other texts by now, in the file of unlabeled rows that is there."""
    views = label_figures(artifact).views
    if views is None or not views.disputed or not data.existing([UNLABELED]):
        return False
    return len(texts_of(data, views.disputed)) < len(views.disputed)


def texts_of(data: TaskData, wanted: Sequence[DisputedRow]) -> Mapping[int, str]:
    """Return the texts of rows by line, those whose file holds another text there left out."""
    if not data.existing([UNLABELED]):
        return {}
    left = {row.line: row.text_digest for row in wanted}
    found: dict[int, str] = {}
    for row in data.iterate(UNLABELED):
        if left.pop(row.line, None) == reading_digest(row):
            found[row.line] = text_of(row)
        if not left:
            break
    return found


def text_of(row: TaskRow) -> str:
    """Return a row's texts in one line, cut where they are long."""
    text = " | ".join(row.texts.values())
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
