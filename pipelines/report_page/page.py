"""The report: one HTML page of sections, tables and figures that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from adapt.core.errors import shown

_STYLE = """
body{font:15px/1.5 system-ui,"Noto Sans CJK SC",sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#111827}
h1{font-size:1.6rem} h2{margin-top:2.2rem;border-bottom:1px solid #d1d5db} figure{display:inline-block;margin:.6rem .4rem;
vertical-align:top} figcaption{font-weight:600} .tick{font-size:11px;fill:#4b5563} .grid{stroke:#e5e7eb}
.legend span{margin-right:1em;font-size:13px} .legend i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
table{border-collapse:collapse;margin:.6rem 0} th,td{border:1px solid #d1d5db;padding:.25rem .6rem;text-align:left}
th{background:#f3f4f6} td.number{text-align:right;font-variant-numeric:tabular-nums} p.note{color:#4b5563}
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with HTML below it."""

    title: str
    parts: Sequence[str]


def escaped(text: str) -> str:
    """Return a text as HTML that is nothing but text: no tag, no control character, no mark that turns what stands behind it."""
    return html.escape(shown(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table; cells are escaped."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f'<td class="{_kind(cell)}">{escaped(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def note(text: str) -> str:
    return f'<p class="note">{escaped(text)}</p>'


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the whole page."""
    body = "".join(f"<section><h2>{escaped(s.title)}</h2>{''.join(s.parts)}</section>" for s in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escaped(title)}</h1>{body}</body></html>\n"
    )


def _kind(cell: str) -> str:
    return "number" if cell[:1].isdigit() or cell[:1] in "+-." else "text"
