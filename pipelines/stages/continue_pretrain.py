"""Stage `continue_pretrain`: a base model and pseudo-labels to a model adapted to one task, or to several tasks together.

A task without a selected row is not adapted: its artifact holds no weights and later stages take the base's. So it is where the
gate on general text takes an adaptation back. Tasks that are adapted together have one artifact, linked under each of their names.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.core.artifacts import Artifact, StageKey
from adapt.core.errors import ConfigError, DataError
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain, to_plain
from adapt.model.config import GPTConfig
from adapt.text.mixing import Ingredient, RowList, mixed
from adapt.text.packing import RowSource
from adapt.train.engine_config import EngineConfig
from pipelines.config.schema import AdaptConfig, MomentsStart, PipelineConfig
from pipelines.ranks.launch import launch
from pipelines.stages.contract import Plan, Walk, plain_settings, weights_of
from pipelines.stages.forgetting import general_perplexity, general_text, held_out_rows, is_rolled_back, replayed_rows
from pipelines.stages.pretrain import describe_training, train_config, training_job, training_metrics
from pseudo_label.adaptation_data import ReadingConfig, training_rows
from pseudo_label.store import LABELS_FILE, read_labels, rows_of_labels
from pseudo_label.tasks import TaskConfig, read_rows, split_path

NAME = "continue_pretrain"
VERSION = 1
PER_TASK = True
_GENERAL_FILE = "general.json"
_MOMENTS_DIRECTORY = "moments"


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A task that is adapted, its labels, and how many of its rows come in an epoch."""

    task: TaskConfig
    labels: Artifact
    rows_per_epoch: int


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Continue pretraining on the selected rows under the whole objective."""
    assert task is not None
    config = walk.config
    settings = config.continue_pretrain
    base = walk.base()
    check_training(own_model_of(base), walk.engine)
    members = _members(walk, task, base)
    is_joint = _is_joint(settings, task)
    name = "joint" if is_joint else task.name
    moments = moments_of(base, settings)
    general = general_text(walk, base)
    tasks = {f"task {member.task.name}" if is_joint else "task": member.task for member in members}
    key = StageKey(
        stage=NAME,
        version=VERSION,
        config=plain_settings(
            **tasks,
            continue_pretrain=settings,
            objective=config.objective,
            **walk.engine.numerics(),
            seed=config.seed,
            gate=None if general is None else config.gate,
        ),
        inputs={
            "base": base,
            **{labels_name(member.task, is_joint): member.labels for member in members},
            **({} if general is None else {"general_text": general}),
        },
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        n_task_rows = sum(member.rows_per_epoch for member in members)
        if not n_task_rows:
            return {"is_adapted": False}
        if settings.replay_share and general is not None and not general.metrics["train"]:
            raise DataError("data.corpus: no text is left to replay; lower pretrain.held_out_share")
        n_replayed = round(n_task_rows * settings.replay_share / (1 - settings.replay_share))
        steps = math.ceil(settings.epochs * (n_task_rows + n_replayed) / settings.batch_rows)
        train = replace(train_config(settings, steps), trains=settings.trains)
        job = {
            "stage": NAME,
            "base": str(weights_of(base).resolve()),
            "tasks": [_plain_member(walk, member) for member in members if member.rows_per_epoch],
            "reading": to_plain(settings.reading()),
            "general": None if general is None else str(general.path.resolve()),
            "general_rows": config.gate.general_rows,
            "replayed_rows": n_replayed,
            "job": {
                **training_job(walk, NAME, name, config.objective, train, result, work),
                "moments_from": None if moments is None else str(moments.resolve()),
            },
        }
        launch(job, work, walk.engine)
        return _finished(walk, result, work)

    return Plan(key=key, build=build, describe=_describe)


def own_model_of(base: Artifact) -> GPTConfig | None:
    """Return the model configuration of a base of this project; None of a Hugging Face one."""
    if is_hf_directory(weights_of(base)):
        return None
    from adapt.checkpoint.weights import load_config  # imports torch

    return load_config(weights_of(base))


def check_training(model: GPTConfig | None, engine: EngineConfig) -> None:
    """Raise ConfigError where a base's experts cannot be shared as asked, or its training does not fit into memory."""
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.gpt import GPT
    from adapt.train.memory_plan import check_memory

    check_share(() if model is None else GPT(model).expert_counts, engine.expert_parallel)
    if model is not None:
        check_memory(model, engine)


def labels_name(task: TaskConfig, is_joint: bool) -> str:
    """Return under which name an adaptation's inputs hold a task's labels."""
    return f"pseudo_label {task.name}" if is_joint else "pseudo_label"


def labels_digest(adapted: Artifact, task: str) -> str:
    """Return the digest of the labels of a task that an adaptation was made with."""
    found = adapted.inputs.get(f"pseudo_label {task}") or adapted.inputs["pseudo_label"]
    return found.digest


def _is_joint(settings: AdaptConfig, task: TaskConfig) -> bool:
    return settings.joint is not None and task.name in settings.joint


def _members(walk: Walk, task: TaskConfig, base: Artifact) -> list[_Member]:
    """Return the tasks that are adapted with this one, itself among them.

    Raises:
        ConfigError: tasks are to be adapted together that the run has not, or in rounds.
        DataError: labels come from another model.
    """
    config = walk.config
    check_joint(config)
    joint = config.continue_pretrain.joint or {}
    together = [other for other in walk.tasks() if other.name in joint] if task.name in joint else [task]
    members = []
    for member in together:
        labels = walk.require("pseudo_label", member)
        if labels.inputs["base"].digest != base.digest:
            raise DataError(
                f"{labels.path}: its labels come from another model than {base.path}; run `python -m pipelines.pseudo_label` again"
            )
        n_rows = int(labels.metrics["selected"])
        if config.continue_pretrain.reads_unselected and n_rows:
            n_rows = int(labels.metrics["rows"]) - int(labels.metrics["held_out"])
        members.append(_Member(task=member, labels=labels, rows_per_epoch=round(n_rows * joint.get(member.name, 1.0))))
    return members


def check_joint(config: PipelineConfig) -> None:
    """Raise ConfigError where tasks are to be adapted together that the run has not, or in rounds."""
    joint = config.continue_pretrain.joint or {}
    missing = sorted(set(joint) - set(config.tasks))
    if missing:
        raise ConfigError(f"continue_pretrain.joint: task '{missing[0]}' is not in tasks={config.tasks}; add it there")
    if joint and config.pseudo_label.rounds.count > 1:
        raise ConfigError("pseudo_label.rounds.count: tasks in continue_pretrain.joint are adapted in one round; set it to 1")


def moments_of(base: Artifact, settings: AdaptConfig) -> Path | None:
    """Return where the base's optimizer moments are, if they are to be kept.

    Raises:
        ConfigError: it has none.
    """
    if settings.moments is MomentsStart.FRESH:
        return None
    place = weights_of(base)
    if not (place / _MOMENTS_DIRECTORY).is_dir():
        raise ConfigError(
            f"continue_pretrain.moments=keep: {place} has no optimizer moments; pretrain it with pretrain.keeps_moments=true, or "
            "use continue_pretrain.moments=fresh"
        )
    return place


def _plain_member(walk: Walk, member: _Member) -> dict[str, Any]:
    return {
        "task": to_plain(member.task),
        "labels": str((member.labels.path / LABELS_FILE).resolve()),
        "rows": str(split_path(walk.data_root(), member.task, "unlabeled").absolute()),
        "rows_per_epoch": member.rows_per_epoch,
    }


def _finished(walk: Walk, result: Path, work: Path) -> dict[str, Any]:
    """Collect the metrics of a finished job, and hold it against the gate."""
    metrics = training_metrics(result, work)
    losses = result / _GENERAL_FILE
    if not losses.is_file():
        return {"is_adapted": True, **metrics}
    content = json.loads(losses.read_text(encoding="utf-8"))
    general = general_perplexity(np.asarray(content["before"]), np.asarray(content["after"]))
    is_taken_back = is_rolled_back(walk.config.gate, general)
    if is_taken_back:
        for file in result.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return {"is_adapted": not is_taken_back, "general": to_plain(general), "said": str(general), **metrics}


def _describe(artifact: Artifact) -> str:
    metrics = artifact.metrics
    if "said" in metrics and not metrics["is_adapted"]:
        return f"rolled back, the base model stands: {metrics['said']}, more than gate.max_general_ppl_increase"
    if not metrics["is_adapted"]:
        return "no pseudo-labels to train on: the base model stands"
    said = f"; {metrics['said']}" if "said" in metrics else ""
    return describe_training(artifact) + said


def train_rank(job: dict[str, Any], rank: RankInfo) -> None:
    """Adapt on one rank."""
    from adapt.checkpoint.weights import load_model
    from adapt.train.job import TrainData, TrainJob, run_training  # imports DeepSpeed, which parents do without

    spec: TrainJob = from_plain(TrainJob, job["job"], "job.yaml")
    reading: ReadingConfig = from_plain(ReadingConfig, job["reading"], "job.yaml")
    base = Path(job["base"])
    model = load_model(base, share=spec.engine.expert_share(rank.rank))
    tokenizer = load_tokenizer(base, model)
    ingredients: list[Ingredient] = []
    held_out: dict[str, RowSource] = {}
    for member in job["tasks"]:
        task: TaskConfig = from_plain(TaskConfig, member["task"], "job.yaml")
        labels = read_labels(Path(member["labels"]))
        rows = rows_of_labels(labels, read_rows(Path(member["rows"]), task), member["rows"])
        loss = spec.objective.pseudo_label
        training, measured = training_rows(task, rows, labels, tokenizer, model.context_length, loss, reading)
        ingredients.append(Ingredient(name=task.name, source=RowList(training), rows_per_epoch=int(member["rows_per_epoch"])))
        if measured:
            held_out[task.name] = RowList(measured)
    general: RowSource | None = None
    if job["general"] is not None:
        general = held_out_rows(Path(job["general"]), model.context_length, int(job["general_rows"]))
    if job["replayed_rows"]:
        replayed = replayed_rows(Path(job["general"]), model.context_length, spec.seed)
        ingredients.append(Ingredient(name="general text", source=replayed, rows_per_epoch=int(job["replayed_rows"])))
    data = TrainData(training=mixed(ingredients, spec.seed), held_out=held_out, general=general if general else None)
    run_training(model, tokenizer, data, spec, rank)
