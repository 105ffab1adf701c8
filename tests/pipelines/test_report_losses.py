"""The report's loss charts: text and routers apart, and a warning where training looked ahead."""

from __future__ import annotations

import pytest

from pipelines.report import _losses


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_losses_of_routers_have_a_chart_of_their_own(looks_ahead: bool) -> None:
    line = {"step": 1.0, "loss/total": 3.0}
    for part, count in (("context", 5.0), ("prompt", 0.0), ("pseudo_label", 0.0), ("balance", 9.0), ("margin", 9.0)):
        line |= {f"loss/{part}": 1.0, f"count/{part}": count}
    if looks_ahead:
        line["router/looks_ahead"] = 1.0
    text, routers = _losses([line]).split("Losses of routers")
    assert ("loss/context" in text, "loss/prompt" in text, "loss/margin" in text) == (True, False, False)
    assert "loss/margin" in routers
    assert ("no language-model losses" in text) is looks_ahead
