"""What a chart draws, as plain values that the page carries: `charts.html` makes a BokehJS figure of them when it comes into view.

No figure is built here. Bokeh's own models took a walk's report some hundred milliseconds of a CPU for each chart, and a browser
drew all charts of a page before it showed the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

Value = str | float | tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its label, and names in order or two ends; without both it fits what is drawn.

    `is_small` sets its names in small type; `is_turned` turns them, so that long ones have room.
    """

    label: str = ""
    names: Sequence[str] | None = None
    ends: tuple[float, float] | None = None
    starts_at_zero: bool = False
    is_small: bool = False
    is_turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Glyph:
    """Marks of one kind (line, scatter, segment, vbar, rect, text): `fields` are properties by column, `values` by value.

    `shades` are the colours of a column's values from 0 to `top`. Marks that are not `hovered` show no values.
    """

    kind: str
    fields: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    shades: Sequence[str] = ()
    top: float = 1.0
    legend: str | None = None
    hovered: bool = True


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Columns of equal length, and the marks that are made of them."""

    columns: Mapping[str, Sequence[Value]]
    glyphs: Sequence[Glyph]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart's axes and layers. `tooltips` are (name, text with @columns).

    They show for marks at the pointer (`hover` is mouse), anywhere in its row (hline), or above and below it (vline).
    """

    height: int
    x: Axis
    y: Axis
    layers: Sequence[Layer]
    tooltips: Sequence[tuple[str, str]]
    x_is_above: bool = False
    has_grid: bool = True
    hover: str = "mouse"

    @property
    def is_empty(self) -> bool:
        return not any(len(values) for layer in self.layers for values in layer.columns.values())


def as_script(drawings: Sequence[Drawing]) -> Markup:
    """Return drawings as JSON that can stand in an HTML script, whatever the names in it."""
    plain = json.dumps([_plain(one) for one in drawings], ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float)
    for sign in "<>&\u2028\u2029":
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(plain)


def _plain(one: Drawing) -> dict[str, Any]:
    layers = [{"columns": dict(layer.columns), "glyphs": [_given(glyph) for glyph in layer.glyphs]} for layer in one.layers]
    return {**vars(one), "x": _given(one.x), "y": _given(one.y), "layers": layers, "is_empty": one.is_empty}


def _given(part: Axis | Glyph) -> dict[str, Any]:
    """Return fields that say something."""
    return {key: value for key, value in vars(part).items() if value not in (None, False, "", ())}
