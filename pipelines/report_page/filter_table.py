"""A table that filters by words and by the values of its columns; it sorts as the other tables of a page do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from adapt.core.errors import shown
from pipelines.report_page.templates import template

_MOST_CHOICES = 30


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell's text, the page that it leads to (relative to this one), and how it is set.

    `kind` is text, number, name, failed or missing; `title` shows on hover.
    """

    text: str
    link: str | None = None
    kind: str = "text"
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's head, what shows on hover of it, and whether its values can be chosen from."""

    name: str
    title: str = ""
    is_chosen_by: bool = False


def filter_table(name: str, header: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Markup:
    """Return the table; columns with two or more values can be chosen from where they say so. `name` is its place in the page."""
    columns = []
    for place, head in enumerate(header):
        values = list(dict.fromkeys(shown(row[place].text) for row in rows)) if head.is_chosen_by else []
        choices = values if 2 <= len(values) <= _MOST_CHOICES else []
        columns.append({"name": shown(head.name), "title": shown(head.title), "place": place, "choices": choices})
    cells = [[replace(cell, text=shown(cell.text), title=shown(cell.title)) for cell in row] for row in rows]
    return Markup(template("filter_table.html").render(id=name, columns=columns, rows=cells))
