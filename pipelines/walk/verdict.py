"""One line per task when a run ends: what adaptation gained, how sure that is, and what it forgot.

The gain is that of the run's evaluation (`gain_of`); the forgetting is the rise of perplexity on general text that adaptation
measured, where there was some.
"""

from __future__ import annotations

from pipelines.stages import continue_pretrain, evaluate
from pipelines.stages.gain import gain_of
from pipelines.stages.products import Adaptation
from pipelines.stages.run import Run


def verdicts(current: Run) -> str:
    """Return a line for each task of the run that was adapted and evaluated; empty where none was."""
    found = {task: verdict_on(current, task) for task in current.config.tasks}
    return "\n".join(f"{task}: {said}" for task, said in found.items() if said is not None)


def verdict_on(current: Run, task: str) -> str | None:
    """Return a task's gain and forgetting in words; None where it was not adapted, or not evaluated since."""
    adapted, evaluated = (current.linked(stage, task) for stage in (continue_pretrain.NAME, evaluate.NAME))
    if adapted is None or evaluated is None or evaluated.inputs.get(continue_pretrain.NAME) is None:
        return None
    general = Adaptation.of(adapted).general
    forgotten = "forgetting not measured (no data.corpus)" if general is None else str(general)
    return f"{gain_of(adapted, evaluated)}; {forgotten}"
