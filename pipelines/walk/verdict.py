"""When a run ends, for each task: what adaptation gained, how sure that is, and what it forgot.

The gain is that of the run's evaluation (`gain_of`); the forgetting is the rise of perplexity on general text that adaptation
measured, where there was some. A terminal gets short lines, a tracker one sentence.
"""

from __future__ import annotations

from pipelines.stages import continue_pretrain, evaluate
from pipelines.stages.gain import Said, gain_of, in_a_sentence, in_lines
from pipelines.stages.products import Adaptation
from pipelines.stages.run import Run


def verdicts(current: Run) -> str:
    """Return lines for each task of the run that was adapted and evaluated; empty where none was."""
    found = {task: _parts(current, task) for task in current.config.tasks}
    return "\n".join(f"{task}: {in_lines(parts)}" for task, parts in found.items() if parts)


def verdict_on(current: Run, task: str) -> str | None:
    """Return a task's gain and forgetting in a sentence; None where it was not adapted, or not evaluated since."""
    parts = _parts(current, task)
    return in_a_sentence(parts) if parts else None


def _parts(current: Run, task: str) -> list[Said]:
    adapted, evaluated = (current.linked(stage, task) for stage in (continue_pretrain.NAME, evaluate.NAME))
    if adapted is None or evaluated is None or evaluated.inputs.get(continue_pretrain.NAME) is None:
        return []
    general = Adaptation.of(adapted).general
    forgotten = "forgetting not measured (no data.corpus)" if general is None else str(general)
    return [*gain_of(adapted, evaluated), Said(text=forgotten)]
