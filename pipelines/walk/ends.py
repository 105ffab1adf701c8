"""What a command ends with on the terminal: tables, verdicts and places of the stages that it was asked for.

Results of stages that it was not asked for are left out: they are of an earlier command, and perhaps of another model. What is
shown belongs together (`belonging`); what was left out is said.
"""

from __future__ import annotations

from adapt.core.artifacts import is_artifact
from pipelines.stages import continue_pretrain, evaluate, pseudo_label
from pipelines.stages.delivery import Delivery
from pipelines.stages.products import REPORT_FILE
from pipelines.stages.run import Run
from pipelines.stages.up_to_date import CHAIN, belonging, older_export
from pipelines.walk.tables import accuracy_table, coarse_table, criteria_table, teachers_table
from pipelines.walk.verdict import verdicts

_EXPORT, _REPORT = "export", "report"


def ends(current: Run) -> list[str]:
    """Return what is to be printed, a text for each table and list; texts may be empty."""
    stages = current.config.stages
    is_shown = _REPORT in stages  # its page shows all of the run
    asked = {*stages, *([continue_pretrain.NAME] if evaluate.NAME in stages else [])}
    found = {}
    for task in current.config.tasks:
        found[task], left_out = belonging(current, task, [stage for stage in CHAIN if is_shown or stage in asked])
        if left_out:
            current.workshop.say_once(left_out)
    texts = [teachers_table(found)] if is_shown or pseudo_label.NAME in stages else []
    if is_shown or evaluate.NAME in stages:
        texts += [accuracy_table(found), criteria_table(found), coarse_table(found), verdicts(found)]
    return [*texts, _places(current)]


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
        elif evaluate.NAME in stages and (older := older_export(current, name)):
            lines.append(older)
    return "\n".join(lines)
