"""The report's sections on what a run cost, what it forgot, and the commands that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from adapt.core.artifacts import Artifact
from adapt.core.faults import said_bytes
from adapt.core.json_files import read_object
from adapt.core.progress import spelled
from pipelines.report_page.charts import Chart, Interval, interval_chart
from pipelines.report_page.page import Section, code, heading, note, table
from pipelines.stages.products import Adaptation, Evaluation, GeneralPerplexity, Training

_TRAININGS = ("pretrain", "continue_pretrain")
_GENERAL_FILE = "general.json"
_MOST_CONTINUED = 8


def cost_section(found: Mapping[str, Artifact]) -> Section:
    """Lay out how long each stage took, and the memory of trainings against the plan."""
    rows = []
    for name, artifact in found.items():
        made = _training(artifact)
        planned = None if made is None else made.planned_bytes
        peak = None if made is None else made.peak_bytes
        rows.append(
            [
                name,
                "-" if artifact.seconds is None else f"{artifact.seconds:.1f}",
                "-" if made is None or not made.steps else f"{made.steps:,}",
                "-" if made is None or not made.steps else f"{made.tokens_per_s:,.0f}",
                *("-" if size is None else said_bytes(size) for size in (peak, planned)),
            ]
        )
    seconds = [artifact.seconds for artifact in found.values() if artifact.seconds is not None]
    said = f"All stages together took {spelled(sum(seconds))}" if seconds else "The time was not recorded"
    note_on = (
        f"{said}; a stage that was interrupted counts from its last start. The peak is rank 0's: on a CPU the private memory "
        "of its process, on a GPU what was allocated there. The plan is for the longest rows, on a CPU with the process itself."
    )
    header = ("stage", "time, s", "steps", "tokens a second", "peak memory", "plan")
    return Section(title="Cost", parts=[note(note_on), table(header, rows)])


def _training(artifact: Artifact) -> Training | None:
    if artifact.stage not in _TRAININGS:
        return None
    return Adaptation.of(artifact) if artifact.stage == "continue_pretrain" else Training.of(artifact)


def forgetting_section(found: Mapping[str, Artifact], *, shows_texts: bool) -> Section | None:
    """Lay out what general text and other tasks say of each adaptation; None where nothing was measured."""
    made = {name.partition("/")[2]: artifact for name, artifact in found.items() if artifact.stage == "continue_pretrain"}
    parts: list[Chart | Markup] = []
    general = {task: one for task, artifact in made.items() if (one := Adaptation.of(artifact).general) is not None}
    if general:
        parts += [_perplexities(general), _perplexity_table(general)]
    for task, artifact in made.items():
        continuations = Adaptation.of(artifact).continuations
        if continuations is not None:
            parts.append(note(f"{task}: {continuations}."))
            parts += _continued(artifact) if shows_texts else []
    others = [
        (name.partition("/")[2], row) for name, a in found.items() if a.stage == "evaluate" for row in Evaluation.of(a).other_tasks
    ]
    parts += [heading("Other tasks"), _other_tasks(others)] if others else []
    return Section(title="Forgetting", parts=parts) if parts else None


def _perplexities(general: Mapping[str, GeneralPerplexity]) -> Chart:
    intervals = [
        Interval(
            row=task, series="adapted", value=100 * one.increase, low=100 * one.ci95[0], high=100 * one.ci95[1]
        )
        for task, one in general.items()
    ]  # fmt: skip
    low, high = min(0.0, *(i.low for i in intervals)), max(1.0, *(i.high for i in intervals))
    title = "Rise of the perplexity of general text, with 95 % interval"
    return interval_chart(title, intervals, 1.1 * low, 1.1 * high, " %")


def _perplexity_table(general: Mapping[str, GeneralPerplexity]) -> Markup:
    rows = [
        [task, f"{one.before:.1f}", f"{one.after:.1f}", f"{100 * one.increase:+.1f}",
         f"{100 * one.ci95[0]:+.1f} to {100 * one.ci95[1]:+.1f}", f"{one.tokens:,}"]
        for task, one in general.items()
    ]  # fmt: skip
    return table(("task", "perplexity before", "after", "rise, %", "95 % interval", "tokens"), rows)


def _continued(artifact: Artifact) -> list[Markup]:
    file = artifact.path / _GENERAL_FILE
    said: Sequence[Mapping[str, str]] = read_object(file).get("continuations", []) if file.is_file() else []
    rows = [[one["beginning"], one["before"], one["after"]] for one in said[:_MOST_CONTINUED]]
    return [table(("general text begins", "the base goes on", "the adapted model goes on"), rows)] if rows else []


def _other_tasks(others: Sequence[tuple[str, Mapping[str, Any]]]) -> Markup:
    rows = [
        [task, row["task"], row["method"], str(row["n"]), f"{100 * row['before']:.1f}", f"{100 * row['after']:.1f}",
         f"{100 * row['difference']['value']:+.1f}",
         f"{100 * row['difference']['ci95'][0]:+.1f} to {100 * row['difference']['ci95'][1]:+.1f}"]
        for task, row in others
    ]  # fmt: skip
    header = ("adapted to", "measured on", "method", "n", "accuracy before, %", "after, %", "difference, points", "95 % interval")
    return table(header, rows)


def commands_section(commands: Sequence[tuple[str, str, str]]) -> Section:
    """Lay out (when, command, how it ended) of the commands that walked this run, the newest last."""
    if not commands:
        return Section(title="Command", parts=[note("No command of this run is recorded: an earlier version walked it.")])
    parts: list[Chart | Markup] = [code(commands[-1][1])]
    if len(commands) > 1:
        parts += [heading("All commands of this run"), table(("started (UTC)", "command", "ended"), commands)]
    return Section(title="Command", parts=parts)
