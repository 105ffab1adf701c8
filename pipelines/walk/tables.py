"""The tables that a run ends with: accuracies, criteria by task, and what coarse-to-fine loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapt.core.artifacts import METRICS_FILE, Artifact
from adapt.core.json_files import read_json
from pipelines.stages import evaluate, pseudo_label
from pipelines.stages.criteria_table import CRITERIA_FILE
from pipelines.stages.lexical_answers import MODEL as LEXICAL_MODEL
from pipelines.stages.products import Labels

ByTask = Mapping[str, Mapping[str, Artifact]]  # a run's results by task and stage


def accuracy_table(found: ByTask) -> str:
    """Return the run's accuracies as text: the lexical labeller, then base beside adapted; empty where nothing was measured."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in _rows(found, METRICS_FILE):
        low, high = row["ci95"]
        cell = f"{100 * row['accuracy']:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        rows.setdefault((row["task"], f"{row['split']} ({row['n']})", row["method"]), {})[row["model"]] = cell
    if not rows:
        return ""
    lines = [f"{'task':<14} {'split':<12} {'method':<9} {'not adapted, % [95 %]':<22} {'adapted, % [95 %]':<20}"]
    for (task, split, method), cells in rows.items():
        before = cells.get("base", cells.get(LEXICAL_MODEL, "-"))
        lines.append(f"{task:<14} {split:<12} {method:<9} {before:<22} {cells.get('adapted', '-'):<20}".rstrip())
    return "\n".join(lines)


def teachers_table(found: ByTask) -> str:
    """Return each task's teachers with estimated and measured accuracies as text; empty where one teacher labelled."""
    lines = []
    for name, made in found.items():
        labels = Labels.of(made[pseudo_label.NAME]) if pseudo_label.NAME in made else None
        if labels is not None and len(labels.teachers) > 1:
            lines.append(f"{name}: {labels.said_of_teachers}")
    return "\n".join(lines)


def criteria_table(found: ByTask) -> str:
    """Return accuracy by criterion and task as text, raw / prior-matched; empty where no criteria were compared."""
    cells: dict[str, dict[str, str]] = {}
    criteria: list[str] = []
    for row in _rows(found, CRITERIA_FILE):
        task = f"{row['task']}{'' if row['model'] == 'base' else '*'}"
        if row["criterion"] not in criteria:
            criteria.append(row["criterion"])
        prior = f"/{100 * row['prior']['accuracy']:.1f}" if "prior" in row else ""
        cells.setdefault(task, {})[row["criterion"]] = f"{100 * row['raw']['accuracy']:.1f}{prior}"
    if not cells:
        return ""
    lines = ["accuracy on dev + few under the reference prompt, %, raw/prior-matched (*: adapted)"]
    lines.append(f"{'task':<14}" + "".join(f"{name:>14}" for name in criteria))
    lines += [f"{task:<14}" + "".join(f"{some.get(name, '-'):>14}" for name in criteria) for task, some in cells.items()]
    return "\n".join(lines)


def coarse_table(found: ByTask) -> str:
    """Return what coarse-to-fine loses at each step, beside ranking all labels at once; empty where it was not used."""
    rows = _rows(found, evaluate.COARSE_FILE)
    if not rows:
        return ""
    heads = {"n": 5, "right": 6, "right_flat": 11, "lost_at_coarse": 15, "lost_at_fine": 13, "mended": 7, "spoilt": 7}
    lines = [f"{'coarse to fine':<14} {'split':<6} {'model':<8} {'method':<12}" + "".join(f"{h:>{w}}" for h, w in heads.items())]
    for row in rows:
        who = f"{row['task']:<14} {row['split']:<6} {row['model']:<8} {row['method']:<12}"
        lines.append(who + "".join(f"{row[h]:>{w}}" for h, w in heads.items()))
    return "\n".join(lines)


def _rows(found: ByTask, file: str) -> list[dict[str, Any]]:
    """Return the rows of an evaluation file of all tasks of the run."""
    places = [made[evaluate.NAME].path / file for made in found.values() if evaluate.NAME in made]
    return [row for place in places if place.is_file() for row in read_json(place)]
