"""The report's charts of experts: how full each was while training went on, and on measured rows before and after it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from adapt.core.artifacts import FIGURES_FILE, Artifact
from adapt.train.expert_loads import ExpertLoads, Shares
from pipelines.report_page.charts import Chart, heat_map
from pipelines.report_page.page import heading, note

_MOST_LAYERS = 6
_MOST_MEASURED = 4
_MOST_STEPS = 20  # that can be told apart on a narrow screen
_MOST_CELLS = 1500  # of a map over time, so that a page stays small


def expert_parts(artifact: Artifact) -> list[Chart | Markup]:
    """Draw the loads that a training left; nothing of a dense model, or of a training by a version that left none."""
    file = artifact.path / FIGURES_FILE
    if not file.is_file():
        return []
    loads = ExpertLoads.read(file)
    top = max([2.0, *(share * len(layer) for step in loads.steps for layer in step.shares for share in layer)])
    charts = [_over_time(loads, layer, top) for layer in _chosen_layers(loads)]
    for name, found in list(loads.measured.items())[:_MOST_MEASURED]:
        charts.append(_before_and_after(f"Experts on {name}, before and after", found.before, found.after))
    said = "An expert's load is its share of the tokens over an even share: 1 is even, 0 is an expert without a token."
    left_out = max(0, len(loads.measured) - _MOST_MEASURED)
    return [heading("Experts"), note(f"{said} {left_out} more kinds of text were measured." if left_out else said), *charts]


def _chosen_layers(loads: ExpertLoads) -> list[int]:
    """Return MoE layers to draw over time: all, or some evenly from the first to the last."""
    count = len(loads.steps[0].shares) if loads.steps else 0
    if count <= _MOST_LAYERS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_MOST_LAYERS - 1)) for i in range(_MOST_LAYERS)})


def _over_time(loads: ExpertLoads, layer: int, top: float) -> Chart:
    n_experts, n_layers = len(loads.steps[0].shares[layer]), len(loads.steps[0].shares)
    most = max(2, min(_MOST_STEPS, _MOST_CELLS // n_experts))
    every = max(1, -(-len(loads.steps) // most))
    steps = loads.steps[::-1][::every][::-1]  # the last step is always among them
    cells = [[step.shares[layer][expert] * n_experts for step in steps] for expert in range(n_experts)]
    title = f"Experts of MoE layer {layer + 1} of {n_layers} by training step"
    return heat_map(title, _numbers(n_experts), [str(step.step) for step in steps], cells, ("expert", "step"), top)


def _before_and_after(title: str, before: Shares, after: Shares) -> Chart:
    rows, cells = [], []
    for layer, pair in enumerate(zip(before, after, strict=True)):
        for when, shares in zip(("before", "after"), pair, strict=True):
            rows.append(f"layer {layer + 1} {when}")
            cells.append([share * len(shares) for share in shares])
    top = max([2.0, *(value for line in cells for value in line)])
    return heat_map(title, rows, _numbers(max(map(len, cells))), cells, ("MoE layer", "expert"), top)


def _numbers(count: int) -> Sequence[str]:
    return [str(number + 1) for number in range(count)]
