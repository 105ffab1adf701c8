"""A page of sections, tables and charts in one HTML file that opens without a network.

Everything that is not marked as HTML is escaped; control characters and marks that turn the direction of text are written as
escapes. A content policy in the page forbids requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from adapt.core.errors import shown
from pipelines.report_page.charts import Chart, library
from pipelines.report_page.drawing import as_script
from pipelines.report_page.templates import template

# A number, with its unit, an interval, or nothing to say; digests and dates are texts.
_ENDS = r"( \[[-+\d.,]+, [-+\d.,]+\]( =)?( \([-+\d., to]+\))?)?"
_LONGEST_IN_ONE_LINE = 24
_NUMBER = re.compile(rf"[-+]?[\d.,]+(e[-+]?\d+)?( (%|s|[kMGT]?B|bytes))?( to [-+]?[\d.,]+)?{_ENDS}|-")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with charts and HTML below it; charts that follow each other stand side by side."""

    title: str
    parts: Sequence[Chart | Markup]


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A sentence on top of the page, and what is to be said with it in smaller letters."""

    sentence: str
    details: Sequence[str] = ()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return an HTML table that sorts by a click on a column's head."""
    head = Markup("").join(Markup('<th tabindex="0" scope="col">{}</th>').format(shown(cell)) for cell in header)
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row))) for row in rows)
    return Markup('<div class="wide"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(head, body)


def note(text: str) -> Markup:
    """Return a paragraph."""
    return Markup('<p class="note">{}</p>').format(shown(text))


def code(text: str) -> Markup:
    """Return a block of text to be copied, such as a command."""
    return Markup('<pre tabindex="0">{}</pre>').format(shown(text))


def tokens(label: str, parts: Sequence[tuple[str, str]]) -> Markup:
    """Return a line of boxes after a label, one for each (text, kind): context, prompt or label. Spaces show as a mark."""
    boxes = Markup("").join(Markup('<span class="token {}">{}</span>').format(kind, _visible(text)) for text, kind in parts)
    return Markup('<p class="tokens"><b>{}:</b> {}</p>').format(shown(label), boxes)


def _visible(text: str) -> str:
    return shown(text.replace("\n", "⏎").replace(" ", "␣"))


def heading(text: str) -> Markup:
    """Return a heading below a section's."""
    return Markup("<h3>{}</h3>").format(shown(text))


def page(title: str, sections: Sequence[Section], lead: Sequence[str | Lead] = ()) -> str:
    """Return the whole page; `lead` are the sentences that say what came out."""
    leads = [one if isinstance(one, Lead) else Lead(sentence=one) for one in lead]
    charts = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    numbered = {id(chart): number for number, chart in enumerate(charts)}
    laid_out = [{"title": shown(section.title), "groups": _groups(section, numbered)} for section in sections]
    return template("page.html").render(
        title=shown(title),
        lead=[{"sentence": shown(one.sentence), "details": [shown(detail) for detail in one.details]} for one in leads],
        sections=laid_out,
        drawings=as_script([chart.drawing for chart in charts]),
        has_charts=bool(charts),
        library=library() if charts else "",
        table=table,
    )


def _groups(section: Section, numbered: dict[int, int]) -> list[dict[str, Any]]:
    """Return a section's parts with charts that follow each other put together."""
    groups: list[dict[str, Any]] = []
    for part in section.parts:
        if isinstance(part, Chart):
            chart = {"number": numbered[id(part)], "title": shown(part.title), "header": part.header, "rows": part.rows}
            chart["height"] = part.drawing.height
            if not groups or not groups[-1]["charts"]:
                groups.append({"charts": [], "html": ""})
            groups[-1]["charts"].append(chart)
        else:
            groups.append({"charts": [], "html": escape(part)})
    return groups


def _cell(cell: str) -> Markup:
    kind = "number" if _NUMBER.fullmatch(cell) else "text" if len(cell) > _LONGEST_IN_ONE_LINE else "text short"
    return Markup('<td class="{}">{}</td>').format(kind, shown(cell))
