"""One line per task when a run ends: what adaptation gained, how sure that is, and what it forgot.

The adapted model's answers on dev and few together, by `evaluate.method`, are compared with the best that one had without adapting:
the lexical labeller, or the base under any method of the table. That best one is chosen on the same rows, which favours it. The
gain's interval is resampled in pairs; the forgetting is the rise of perplexity on general text that adaptation measured, where
there was some.
"""

from __future__ import annotations

import numpy as np

from adapt.core.artifacts import Artifact, is_artifact, open_artifact
from adapt.core.json_files import read_json
from pipelines.stages import continue_pretrain, evaluate
from pipelines.stages.products import Adaptation
from pipelines.stages.run import Run
from pipelines.walk.paired_statistics import pool_splits
from pseudo_label.comparison import Difference, best_unadapted, paired_difference

_ENOUGH_ROWS = 100


def verdicts(current: Run) -> str:
    """Return a line for each task of the run that was adapted and evaluated; empty where none was."""
    lines = []
    for task in current.config.tasks:
        adapted, evaluated = (_artifact(current, stage, task) for stage in (continue_pretrain.NAME, evaluate.NAME))
        if adapted is not None and evaluated is not None and evaluated.inputs.get(continue_pretrain.NAME) is not None:
            lines.append(f"{task}: {_gain(current, adapted, evaluated)}; {_forgetting(adapted)}")
    return "\n".join(lines)


def _gain(current: Run, adapted: Artifact, evaluated: Artifact) -> str:
    made = Adaptation.of(adapted)
    if not made.is_adapted:
        return "rolled back, the base stands" if made.is_rolled_back else "not adapted, there was no row to train on"
    path, method = evaluated.path / evaluate.ANSWERS_FILE, current.config.evaluate.method.value
    gold, answers = pool_splits(read_json(path)) if path.is_file() else ({}, {})
    labels = [label for labels in gold.values() for label in labels]
    right = {
        who: np.asarray([answer == label for answer, label in zip(given, labels, strict=True)], dtype=np.float64)
        for who, given in answers.items()
    }
    own, other = ("adapted", method), best_unadapted(right)
    if not labels or own not in right or other is None:
        return "adapted, and not measured: no labelled rows"
    gain = paired_difference(right[own], right[other])
    low, high = (100 * end for end in gain.ci95)
    before = other[0] if other[0] == other[1] else " ".join(other)
    said = f"{_word(gain, len(labels))}, {100 * gain.value:+.1f} points [{low:+.1f}, {high:+.1f}] on {len(labels)} rows"
    after = f"adapted {method} {100 * right[own].mean():.1f} %{_one_answer(answers[own])}"
    return f"{said}: {after}, best without adapting {100 * right[other].mean():.1f} % ({before})"


def _word(gain: Difference, n_rows: int) -> str:
    if not gain.includes_zero:
        return "gained" if gain.value > 0 else "lost"
    return "no clear gain" if n_rows >= _ENOUGH_ROWS else f"too few rows to tell (fewer than {_ENOUGH_ROWS})"


def _one_answer(answers: tuple[str, ...]) -> str:
    return " (every answer is the same)" if len(set(answers)) == 1 else ""


def _forgetting(adapted: Artifact) -> str:
    general = Adaptation.of(adapted).general
    return "forgetting not measured (no data.corpus)" if general is None else str(general)


def _artifact(current: Run, stage: str, task: str) -> Artifact | None:
    path = current.directory / stage / task
    return open_artifact(path.resolve()) if is_artifact(path) else None
