"""What a command ends with on the terminal: tables, verdicts and places of the stages that it was asked for.

Results of stages that it was not asked for are left out: they are of an earlier command, and perhaps of another model.
"""

from __future__ import annotations

from adapt.core.artifacts import is_artifact
from pipelines.stages import evaluate, pseudo_label
from pipelines.stages.delivery import Delivery
from pipelines.stages.products import REPORT_FILE
from pipelines.stages.run import Run
from pipelines.walk.tables import accuracy_table, coarse_table, criteria_table, teachers_table
from pipelines.walk.verdict import verdicts

_EXPORT, _REPORT = "export", "report"


def ends(current: Run) -> list[str]:
    """Return what is to be printed, a text for each table and list; texts may be empty."""
    stages = current.config.stages
    is_shown = _REPORT in stages  # its page shows all of the run
    found = [teachers_table(current)] if is_shown or pseudo_label.NAME in stages else []
    if is_shown or evaluate.NAME in stages:
        found += [accuracy_table(current), criteria_table(current), coarse_table(current), verdicts(current)]
    return [*found, _places(current)]


def _places(current: Run) -> str:
    """Return where the report and the exports are; of an export that is older than its evaluation, how to make it anew."""
    stages = current.config.stages
    page = current.directory / _REPORT / REPORT_FILE
    lines = [f"report: {page}"] if _REPORT in stages and page.is_file() else []
    for name in current.config.tasks:
        is_asked = _EXPORT in stages
        delivery = Delivery.of(current, name) if is_asked else None
        path = current.directory / _EXPORT / name if delivery is None else delivery.place
        if is_asked and is_artifact(path):
            lines.append(f"export: {path}")
        elif evaluate.NAME in stages and _is_older(current, name):
            lines.append(f"export: {path} is older than this evaluation; run `python -m pipelines.export` for a new one")
    return "\n".join(lines)


def _is_older(current: Run, task: str) -> bool:
    """Say whether a task's export was made of another evaluation than the one that is there."""
    exported, evaluated = (current.linked(stage, task) for stage in (_EXPORT, evaluate.NAME))
    used = None if exported is None else exported.inputs.get(evaluate.NAME)
    return evaluated is not None and used is not None and used.digest != evaluated.digest
