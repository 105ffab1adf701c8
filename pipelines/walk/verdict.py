"""When a run ends, for each task: what adaptation gained, how sure that is, and what it forgot.

The gain is that of the run's evaluation (`gain_of`); the forgetting is the rise of perplexity on general text that adaptation
measured, where there was some. A terminal gets short lines, a tracker one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapt.core.artifacts import Artifact
from pipelines.stages import continue_pretrain, evaluate
from pipelines.stages.gain import Said, gain_of, in_a_sentence, in_lines
from pipelines.stages.products import Adaptation


def verdicts(found: Mapping[str, Mapping[str, Artifact]]) -> str:
    """Return lines for each task that was adapted and evaluated, of results by task and stage; empty where none was."""
    said = {task: _parts(made) for task, made in found.items()}
    return "\n".join(f"{task}: {in_lines(parts)}" for task, parts in said.items() if parts)


def verdict_on(made: Mapping[str, Artifact]) -> str | None:
    """Return a task's gain and forgetting in a sentence, of its results by stage; None where it was not adapted and evaluated."""
    parts = _parts(made)
    return in_a_sentence(parts) if parts else None


def _parts(made: Mapping[str, Artifact]) -> list[Said]:
    adapted, evaluated = (made.get(stage) for stage in (continue_pretrain.NAME, evaluate.NAME))
    if adapted is None or evaluated is None or evaluated.inputs.get(continue_pretrain.NAME) is None:
        return []
    general = Adaptation.of(adapted).general
    forgotten = "forgetting not measured (no data.corpus)" if general is None else str(general)
    return [*gain_of(adapted, evaluated), Said(text=forgotten)]
