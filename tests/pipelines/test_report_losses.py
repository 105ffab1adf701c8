"""The report's loss charts: text and routers apart, a warning where training looked ahead, and steps that were skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import Artifact
from pipelines.stages.products import HeldOut, Part, Training
from pipelines.stages.report_training import line_of, losses


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_losses_of_routers_have_a_chart_of_their_own(looks_ahead: bool) -> None:
    line = {"step": 1.0, "loss/total": 3.0}
    for part, count in {
        "context": 5.0,
        "prompt": 0.0,
        "pseudo_label": 0.0,
        "base_divergence": 5.0,
        "balance": 9.0,
        "margin": 9.0,
    }.items():
        line |= {f"loss/{part}": 1.0, f"count/{part}": count}
    if looks_ahead:
        line["router/looks_ahead"] = 1.0
    text, routers = losses([line], Training())
    assert text.header == ("step", "loss/total", "loss/context", "loss/base_divergence")
    assert routers.header == ("step", "loss/balance", "loss/margin")
    assert ("no language-model losses" in text.title) is looks_ahead


def test_held_out_losses_are_points_at_the_start_and_the_end() -> None:
    history = [{"step": step, "loss/total": 3.0, "loss/context": 2.0, "count/context": 1.0} for step in (1.0, 2.0)]
    ledger = HeldOut(before={"context": Part(value=4.0, count=2.0)}, after={"context": Part(value=1.0, count=2.0)})
    [chart] = losses(history, Training(held_out={"task": ledger}))
    marks = chart.drawing.layers[-1].columns
    assert (list(marks["x"]), list(marks["y"])) == ([0.0, 2.0], [4.0, 1.0])


def test_a_skipped_step_has_no_norm_in_its_chart() -> None:
    history = [{"step": 1.0, "grad_norm": 0.5}, {"step": 2.0, "skipped": 1.0}, {"step": 3.0, "grad_norm": 0.25}]
    assert line_of("Gradient norm", history, ["grad_norm"]).rows == [["1", "0.5000"], ["3", "0.2500"]]


@pytest.mark.parametrize(("outcome", "words"), [({"skipped_steps": 3}, "7 steps (3 of them skipped"), ({}, "7 steps, 10 tokens/s")])
def test_a_training_says_how_many_steps_it_skipped(outcome: dict[str, Any], words: str) -> None:
    metrics = {"steps": 7, "tokens_per_s": 10.0, "held_out": {}, **outcome}
    trained = Artifact(
        path=Path(), stage="pretrain", key="", digest="", config=None, inputs={}, metrics=metrics, created=""
    )  # fmt: skip
    assert words in str(Training.of(trained))
