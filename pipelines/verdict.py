"""One line per task when a run ends: what adaptation gained, how sure that is, and what it forgot.

Answers by row of base and adapted model on dev and few together, under `evaluate.method`, become a gain with its interval,
resampled in pairs; the forgetting is the rise of perplexity on general text that adaptation measured, where there was some.
"""

from __future__ import annotations

import json

import numpy as np

from adapt.core.artifacts import Artifact, is_artifact, open_artifact
from pipelines import continue_pretrain, evaluate
from pipelines.stage import Walk
from pipelines.study_statistics import pool_splits
from pseudo_label.comparison import paired_difference


def verdicts(current: Walk) -> str:
    """Return a line for each task of the run that was adapted and evaluated; empty where none was."""
    lines = []
    for task in current.config.tasks:
        adapted, evaluated = (_artifact(current, stage, task) for stage in (continue_pretrain.NAME, evaluate.NAME))
        if adapted is not None and evaluated is not None and evaluated.inputs.get(continue_pretrain.NAME) is not None:
            lines.append(f"{task}: {_gain(current, adapted, evaluated)}; {_forgetting(adapted)}")
    return "\n".join(lines)


def _gain(current: Walk, adapted: Artifact, evaluated: Artifact) -> str:
    if not adapted.metrics["is_adapted"]:
        return "rolled back, the base stands" if "said" in adapted.metrics else "not adapted, no row was selected"
    path, method = evaluated.path / evaluate.ANSWERS_FILE, current.config.evaluate.method.value
    gold, answers = pool_splits(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ({}, {})
    right = [label for labels in gold.values() for label in labels]
    if not right or ("adapted", method) not in answers:
        return "adapted, and not measured: no labelled rows"
    base_N, adapted_N = (
        np.asarray([answer == label for answer, label in zip(answers[model, method], right, strict=True)], dtype=np.float64)
        for model in ("base", "adapted")
    )
    gain = paired_difference(adapted_N, base_N)
    said = "no clear gain" if gain.includes_zero else "gained" if gain.value > 0 else "lost"
    low, high = (100 * end for end in gain.ci95)
    return f"{said}, {100 * gain.value:+.1f} points [{low:+.1f}, {high:+.1f}] ({method}, {len(right)} rows)"


def _forgetting(adapted: Artifact) -> str:
    said = adapted.metrics.get("said")
    return str(said) if said else "forgetting not measured (no data.corpus)"


def _artifact(current: Walk, stage: str, task: str) -> Artifact | None:
    path = current.directory / stage / task
    return open_artifact(path.resolve()) if is_artifact(path) else None
