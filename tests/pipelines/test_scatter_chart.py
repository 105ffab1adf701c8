"""A scatter chart keeps every finite point inside the figure and escapes its name."""

from __future__ import annotations

import math
import re

import pytest

from pipelines.report_page.figures import HEIGHT, WIDTH, Point, scatter_chart


def point(name: str, x: float, y: float) -> Point:
    return Point(name=name, x=x, y=y, low=y - 3, high=y + 3)


@pytest.mark.parametrize("n_points", [1, 2, 12, 50])
def test_every_point_lies_inside_the_figure(n_points: int) -> None:
    chart = scatter_chart("accuracy", [point(f"p{i}", 0.1 * i, 50 - i) for i in range(n_points)], "score")
    places = [tuple(map(float, found)) for found in re.findall(r'<circle cx="([^"]*)" cy="([^"]*)"', chart)]
    assert len(places) == n_points
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places == sorted(places), "to the right and down"
    assert chart.count("<title>") == n_points


def test_points_that_are_not_finite_are_left_out_and_names_are_escaped() -> None:
    chart = scatter_chart("<b>", [point("<script>", 1.0, 2.0), point("gone", math.nan, 1.0), point("gone", 1.0, math.inf)], "score")
    assert chart.count("<circle") == 1
    assert "<script>" not in chart
    assert "<b>" not in chart
    assert "gone" not in chart
    assert "no data" in scatter_chart("accuracy", [], "score")
