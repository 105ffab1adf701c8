"""Stage `continue_pretrain`: a base model and pseudo-labels to a model adapted to one task.

A task without a selected row is not adapted: its artifact holds no weights and later stages take the base's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_model
from adapt.core.artifacts import Artifact, StageKey
from adapt.core.errors import DataError
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain, to_plain
from adapt.text.packing import ReadingList, RowSource
from pipelines.launch import launch
from pipelines.pretrain import describe_training, train_config, training_job, training_metrics
from pipelines.stage import Plan, Walk, plain_settings, weights_of
from pseudo_label.adaptation_data import adaptation_readings
from pseudo_label.store import LABELS_FILE, read_labels
from pseudo_label.tasks import TaskConfig, read_rows, split_path

NAME = "continue_pretrain"
PER_TASK = True


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Continue pretraining on the task's selected rows under the whole objective."""
    assert task is not None
    config = walk.config
    settings = config.continue_pretrain
    base, labels = walk.base(), walk.require("pseudo_label", task)
    if labels.inputs["base"].digest != base.digest:
        raise DataError(
            f"{labels.path}: its labels come from another model than {base.path}; run `python -m pipelines.pseudo_label` again"
        )
    key = StageKey(
        stage=NAME,
        config=plain_settings(
            task=task,
            continue_pretrain=settings,
            objective=config.objective,
            precision=config.engine.precision,
            seed=config.seed,
        ),
        inputs={"base": base, "pseudo_label": labels},
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        n_selected = int(labels.metrics["selected"])
        if not n_selected:
            return {"is_adapted": False}
        n_trained = int(labels.metrics["rows"]) - int(labels.metrics["held_out"]) if settings.reads_unselected else n_selected
        steps = math.ceil(settings.epochs * n_trained / settings.batch_rows)
        job = {
            "stage": NAME,
            "task": to_plain(task),
            "base": str(weights_of(base).resolve()),
            "labels": str((labels.path / LABELS_FILE).resolve()),
            "reads_unselected": settings.reads_unselected,
            "rows": str(split_path(walk.data_root(), task, "unlabeled").resolve()),
            "job": training_job(walk, NAME, task.name, config.objective, train_config(settings, steps), result, work),
        }
        launch(job, work, config.engine.world_size, config.engine.threads)
        return {"is_adapted": True, **training_metrics(result, work)}

    def describe(artifact: Artifact) -> str:
        if not artifact.metrics["is_adapted"]:
            return "no pseudo-labels to train on: the base model stands"
        return describe_training(artifact)

    return Plan(key=key, build=build, describe=describe)


def train_rank(job: dict[str, Any], rank: RankInfo) -> None:
    """Adapt on one rank."""
    from adapt.train.job import TrainData, TrainJob, run_training  # imports DeepSpeed, which parents do without

    spec: TrainJob = from_plain(TrainJob, job["job"], "job.yaml")
    task: TaskConfig = from_plain(TaskConfig, job["task"], "job.yaml")
    base = Path(job["base"])
    model = load_model(base)
    tokenizer = load_tokenizer(base, model)
    training, held_out = adaptation_readings(
        task,
        list(read_rows(Path(job["rows"]), task)),
        read_labels(Path(job["labels"])),
        tokenizer,
        model.context_length,
        spec.objective.pseudo_label,
        reads_unselected=bool(job["reads_unselected"]),
    )
    measured: dict[str, RowSource] = {task.name: ReadingList(held_out)} if held_out else {}
    data = TrainData(training=ReadingList(training), held_out=measured)
    run_training(model, tokenizer, data, spec, rank)


if __name__ == "__main__":
    from pipelines.compose import main

    main(NAME)
