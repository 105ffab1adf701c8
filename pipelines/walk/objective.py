"""The number by which a search over settings judges a point: label-free, or accuracy on labelled rows.

Label-free is agreement times confidence. Of a point that is evaluated on rows of dev and few: over these rows, without reading
their labels, the probability that the deciding model gives to its answer, times the share of the others (the base by the same
method, and the lexical labeller) that answer the same. Of a point that only labels: the mean of the labels' own agreement and
confidence over all unlabeled rows (`labels.parquet`). Both reward being sure together, right or wrong; docs/running.md says what
that is worth. Accuracy is that of the deciding answers on dev (few where there is no dev). Several tasks count the same.

Legend: N rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from adapt.core.errors import ConfigError
from adapt.core.json_files import read_json
from adapt.core.scorer import FloatArray
from pipelines.config.schema import PipelineConfig
from pipelines.config.sweep_settings import Objective
from pipelines.stages import evaluate, pseudo_label
from pipelines.stages.answers import Answers
from pipelines.stages.evaluated_model import ADAPTED, BASE
from pipelines.stages.lexical_answers import MODEL as LEXICAL_MODEL
from pipelines.stages.rows import LABELLED_SPLITS
from pipelines.stages.run import Run
from pseudo_label.decision import Method
from pseudo_label.store import LABELS_FILE, read_labels

logger = logging.getLogger("pipelines")


def objective_of(config: PipelineConfig, point: str | None) -> float | None:
    """Return a point's number, and say what it was made of; None where none is asked for.

    Raises:
        ConfigError: the walk has left nothing to make it of.
    """
    kind = config.sweep.objective
    if kind is Objective.NONE:
        return None
    run = Run(config, point)
    found = {task: _accuracy(run, task) if kind is Objective.ACCURACY else _label_free(run, task) for task in config.tasks}
    if not found:
        raise ConfigError("sweep.objective: there is no task to judge by; set task=NAME")
    value = float(np.mean([number for number, _ in found.values()]))
    said = "; ".join(f"{task} {number:.4f} ({what})" for task, (number, what) in found.items())
    logger.info("objective %s: %.4f: %s", kind.value, value, said)
    return value


def agreement_times_confidence(answers: Answers) -> float:
    """Return the mean over rows of the deciding answer's probability times the share of other models that give it.

    Right answers are not read. With no other model, agreement is 1.
    """
    who = answers.decides
    others = [(model, who[1]) for model in (ADAPTED, BASE) if model != who[0]] + [(LEXICAL_MODEL, Method.LEXICAL.value)]
    voters = [answers.given[other] for other in others if other != who and other in answers.given]
    given = answers.given[who]
    agree_N: FloatArray = np.ones(len(given))
    if voters:
        agree_N = np.mean([[a == b for a, b in zip(given, voter, strict=True)] for voter in voters], axis=0)
    return float(np.mean(agree_N * answers.confidences[who]))


def _label_free(run: Run, task: str) -> tuple[float, str]:
    answers = _answers(run, task, LABELLED_SPLITS)
    if answers is not None:
        return agreement_times_confidence(answers), f"answers to {len(answers.gold)} rows, their labels not read"
    labelled = run.linked(pseudo_label.NAME, task) if pseudo_label.NAME in run.config.stages else None
    labels = read_labels(labelled.path / LABELS_FILE) if labelled is not None else []
    if not labels:
        raise ConfigError(f"sweep.objective=label_free: {task} has no answers and no labels; have stage pseudo_label or evaluate")
    return float(np.mean([one.agreement * one.confidence for one in labels])), f"labels of {len(labels)} unlabeled rows"


def _accuracy(run: Run, task: str) -> tuple[float, str]:
    for split in LABELLED_SPLITS:
        answers = _answers(run, task, [split])
        if answers is not None:
            right = float(answers.right_N(answers.decides).mean())
            return right, f"{' '.join(answers.decides)} on {len(answers.gold)} rows of {split}"
    raise ConfigError(f"sweep.objective=accuracy: {task} was not evaluated on labelled rows; have stage evaluate, and rows in dev")


def _answers(run: Run, task: str, splits: Sequence[str]) -> Answers | None:
    """Return a point's answers on splits; None where it evaluates none of them."""
    evaluated = run.linked(evaluate.NAME, task) if evaluate.NAME in run.config.stages else None
    if evaluated is None or not (evaluated.path / evaluate.ANSWERS_FILE).is_file():
        return None
    lines = [line for line in read_json(evaluated.path / evaluate.ANSWERS_FILE) if line["split"] in splits]
    return Answers.of(task, lines, str(evaluated.config["evaluate"]["method"]))
