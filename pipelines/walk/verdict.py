"""One line per task when a run ends: what adaptation gained, how sure that is, and what it forgot.

The gain is that of the run's evaluation (`gain_of`); the forgetting is the rise of perplexity on general text that adaptation
measured, where there was some.
"""

from __future__ import annotations

from adapt.core.artifacts import Artifact, is_artifact, open_artifact
from pipelines.stages import continue_pretrain, evaluate
from pipelines.stages.gain import gain_of
from pipelines.stages.products import Adaptation
from pipelines.stages.run import Run


def verdicts(current: Run) -> str:
    """Return a line for each task of the run that was adapted and evaluated; empty where none was."""
    lines = []
    for task in current.config.tasks:
        adapted, evaluated = (_artifact(current, stage, task) for stage in (continue_pretrain.NAME, evaluate.NAME))
        if adapted is not None and evaluated is not None and evaluated.inputs.get(continue_pretrain.NAME) is not None:
            lines.append(f"{task}: {gain_of(adapted, evaluated)}; {_forgetting(adapted)}")
    return "\n".join(lines)


def _forgetting(adapted: Artifact) -> str:
    general = Adaptation.of(adapted).general
    return "forgetting not measured (no data.corpus)" if general is None else str(general)


def _artifact(current: Run, stage: str, task: str) -> Artifact | None:
    path = current.directory / stage / task
    return open_artifact(path.resolve()) if is_artifact(path) else None
