"""Finished runs as results to compare: which runs there are, and what each says of a task.

Runs go in as artifacts (`evaluate`, and what led to it). Every point of a sweep is a run of its own, `<run>/<point>`; a pattern
without a slash takes a run with all its points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adapt.core.artifacts import STORE, Artifact, artifact_at
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_json, read_lines
from adapt.core.registry import suggest
from pipelines.config.commands import STAGES
from pipelines.config.described import keys
from pipelines.stages import continue_pretrain, evaluate, pseudo_label
from pipelines.stages.answers import copies_in, pool_splits
from pipelines.stages.criteria_table import CRITERIA_FILE
from pipelines.stages.products import Adaptation, Evaluation, Labels
from pipelines.stages.rows import LABELLED_SPLITS
from pipelines.stages.up_to_date import out_of_date
from pipelines.walk.paired_statistics import ADAPTED_RAW, HeldOutLoss, RunResult, mean_entropy, seed_in

_MOST_NAMED = 30
_OF_ARTIFACTS = ("tasks",)  # a setting's name, under which an adaptation's artifact has its tasks' whole files
_RECORDED = ("tokenizer", "pretrain", pseudo_label.NAME, continue_pretrain.NAME, evaluate.NAME)


def existing_runs(root: Path) -> list[str]:
    """Return the names of a run directory's runs, and `<run>/<point>` for the points of sweeps."""
    found = []
    for path in _directories(root):
        if path.name == STORE:
            continue
        found += [path.name] if _is_run(path) else []
        found += [f"{path.name}/{inner.name}" for inner in _directories(path) if inner.name not in STAGES and _is_run(inner)]
    return found


def chosen_runs(root: Path, patterns: Sequence[str], key: str) -> list[str]:
    """Return the runs that names or patterns choose, in the patterns' order; `key` is the setting that holds them.

    Raises:
        ConfigError: none is asked for, or a pattern chooses nothing; the message names what there is.
    """
    names = existing_runs(root)
    there = f"there are: {some_of(names)}" if names else f"{root} has no runs; check run.dir"
    if not patterns:
        raise ConfigError(f"{key}: names no run; {there}")
    chosen: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name if "/" in pattern else name.partition("/")[0], pattern)]
        if not hits:
            raise ConfigError(f"{key}: '{pattern}' matches no run of {root}{suggest(pattern, names)}; {there}")
        chosen += hits
    return list(dict.fromkeys(chosen))


def _directories(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _is_run(path: Path) -> bool:
    return any((path / stage).is_dir() for stage in STAGES)


def some_of(names: Sequence[str]) -> str:
    """Return names for a message, of many the first."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def tasks_of(directory: Path) -> list[str]:
    """Return the tasks that a run has labelled, adapted to or evaluated."""
    stages = (evaluate.NAME, continue_pretrain.NAME, pseudo_label.NAME)
    return list(dict.fromkeys(path.name for stage in stages for path in sorted((directory / stage).glob("[!.]*"))))


def settings_of(run: Path) -> dict[str, str]:
    """Return a run's settings as its artifacts have them, by dotted key; its tasks are no part of them."""
    known = {leaf.path for leaf in keys()}.difference(_OF_ARTIFACTS)
    found: dict[str, str] = {}
    for stage in _RECORDED:
        places = [run / stage] if stage in ("tokenizer", "pretrain") else sorted((run / stage).glob("[!.]*"))
        for place in places:
            try:
                artifact = artifact_at(place)
            except CheckpointError:  # what is damaged is named where its results are read
                continue
            if artifact is not None:
                flat = dict(_leaves("", artifact.config))
                found |= {key: value for key, value in flat.items() if key in known and key not in found}
    return found


def read_result(directory: Path, run: str, task: str) -> RunResult:
    """Read one run's results on one task.

    Raises:
        CheckpointError: it is not evaluated, or not as it stands now, or an artifact is damaged.
    """
    evaluated = artifact_at(directory / evaluate.NAME / task)
    if evaluated is None:
        raise CheckpointError(f"no {evaluate.NAME}")
    adapted, labels = (artifact_at(directory / stage / task) for stage in (continue_pretrain.NAME, pseudo_label.NAME))
    made = {pseudo_label.NAME: labels, continue_pretrain.NAME: adapted, evaluate.NAME: evaluated}
    old = out_of_date({stage: artifact for stage, artifact in made.items() if artifact is not None}, task)
    if old is not None:
        raise CheckpointError(f"{old.why}; run {old.stages} again")
    if not (evaluated.path / evaluate.ANSWERS_FILE).is_file():
        raise CheckpointError(f"no {evaluate.ANSWERS_FILE}: no labelled rows, or evaluated by an older version")
    given = _json(evaluated, evaluate.ANSWERS_FILE)
    gold, answers = pool_splits(given)
    if not gold:
        raise CheckpointError(f"evaluated on no labelled {' or '.join(LABELLED_SPLITS)}")
    lines = [
        line for line in Evaluation.of(evaluated).table if (line["model"], line["method"]) == ADAPTED_RAW and line["split"] in gold
    ]
    seeds = [artifact.config.get("seed") for artifact in (adapted, labels, evaluated) if artifact is not None]
    seed = next((found for found in seeds if found is not None), None)
    labelling = None if labels is None else Labels.of(labels)
    return RunResult(
        run=run,
        seed=seed_in(run) if seed is None else seed,
        gold=gold,
        answers=answers,
        entropy=mean_entropy(lines),
        held_out=_held_out(adapted) if adapted else None,
        selected=labelling.selected if labelling else None,
        labelled_rows=labelling.rows if labelling else None,
        label_accuracy=labelling.labelled.accuracy if labelling and labelling.labelled else None,
        training_s=_training_s(adapted) if adapted else None,
        scoring_s=sum(line["seconds"] for line in lines) if lines else None,
        method=str(evaluated.config["evaluate"]["method"]) if "evaluate" in evaluated.config else "raw",
        n_copies=sum(map(len, copies_in(given).values())),
        criteria=[line for line in _json(evaluated, CRITERIA_FILE) if line["model"] == "base"],
    )


def _json(artifact: Artifact, file: str) -> list[dict[str, Any]]:
    """Return the lines of an artifact's file; none where it has no such file."""
    path = artifact.path / file
    found: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return found


def _held_out(adapted: Artifact) -> HeldOutLoss | None:
    ledgers = list(Adaptation.of(adapted).held_out.values())
    if not ledgers:
        return None
    before, after = ledgers[0].token_losses
    return HeldOutLoss(before=before, after=after)


def _training_s(adapted: Artifact) -> float | None:
    """Return how long the steps took: all tokens by the measured speed, which holds also where training was resumed."""
    history = adapted.path / "history.jsonl"
    speed = Adaptation.of(adapted).tokens_per_s
    if not speed or not history.is_file():
        return None
    return sum(float(line["tokens"]) for line in read_lines(history)) / float(speed)


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{path}.{key}" if path else str(key), inner)]
    return [(path, str(value))]
