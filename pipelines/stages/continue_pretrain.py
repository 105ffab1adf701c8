"""Stage `continue_pretrain`: a base model and pseudo-labels to a model adapted to one task, or to several tasks together.

A task without a selected row is not adapted: its artifact holds no weights and later stages take the base's. So it is where the
gate on general text takes an adaptation back. Tasks that are adapted together have one artifact, linked under each of their names.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, DataError
from adapt.core.json_files import read_object
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain, to_plain
from adapt.objective_config import BASE_DIVERGENCE, ObjectiveConfig
from adapt.text.mixing import Ingredient, RowList, mixed
from adapt.text.near_documents import CurriculumConfig, When
from adapt.text.packing import FirstRows, RowSource
from adapt.train.train_config import Trained
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.config.schema import GateAction, GateConfig, PipelineConfig
from pipelines.ranks.launch import launch
from pipelines.stages.adaptation_checks import check_training, moments_of
from pipelines.stages.base_defaults import BaseDefaults, said
from pipelines.stages.contract import Reads, Stage, Workshop, unkeyed
from pipelines.stages.forgetting import (
    GeneralTextReads,
    continuations_of,
    general_perplexity,
    general_text,
    is_rolled_back,
    measured_rows,
    replayed_rows,
)
from pipelines.stages.models import weights_of
from pipelines.stages.near_text import NearTextReads, make_tokens, near_text, read_text, text_rows, tokens_of
from pipelines.stages.own_text import REPLAYED_ROWS, OwnText, own_text
from pipelines.stages.products import NEAR_FILE, Adaptation, Labels, ReadText
from pipelines.stages.rows import UNLABELED, TaskData
from pipelines.stages.run import Run
from pipelines.stages.task_versions import refuse_labels_of_other_version
from pipelines.stages.teachers import taught_place
from pipelines.stages.training import TrainingReads, finished_training, train_config
from pseudo_label.adaptation_data import ReadingConfig, training_rows
from pseudo_label.store import LABELS_FILE, read_labels, rows_of_labels
from pseudo_label.tasks import TaskConfig, read_rows, split_path
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.lexical_files import LEXICAL_FILE

if TYPE_CHECKING:  # these import torch
    from adapt.model.distillation import Teacher, Teaching
    from adapt.model.gpt import GPT
    from adapt.model.hf import HFModel
    from adapt.train.job import TrainJob

NAME = "continue_pretrain"
_GENERAL_FILE = "general.json"


@dataclass(frozen=True, kw_only=True)
class Member(Reads):
    """A task that is adapted, and where its rows are; `rows_per_epoch` of them come in an epoch."""

    task: TaskConfig
    rows: Path = unkeyed("labels hold a digest of every row's text, and a row of another text is refused")
    labels: Path = unkeyed("the artifact of labels is an input")
    rows_per_epoch: int = unkeyed("follows from labels and settings")

    def plain(self) -> dict[str, Any]:
        return {
            "task": to_plain(self.task),
            "labels": str(self.labels),
            "rows": str(self.rows),
            "rows_per_epoch": self.rows_per_epoch,
        }


@dataclass(frozen=True, kw_only=True)
class AdaptReads(Reads):
    """The base, the tasks with their labels, the objective, general text where there is some, and how all is trained.

    `targets` are the tasks with the rows that chosen text is to be near to; there are none where no text is chosen.
    """

    tasks: tuple[Member, ...]
    continue_pretrain: AdaptConfig
    objective: ObjectiveConfig
    gate: GateConfig | None
    training: TrainingReads
    base: Artifact
    labels: Mapping[str, Artifact]
    general_text: GeneralTextReads | None
    targets: tuple[TaskData, ...]
    has_own_text: bool = unkeyed("follows from the base and from general text")
    moments: Path | None = unkeyed("they lie beside the base's weights")


class ContinuePretrain(Stage[AdaptReads]):
    """Continue pretraining on the selected rows under the whole objective."""

    name = NAME
    version = 9  # a Hugging Face base replays its own text, and is kept near

    def reads(self, run: Run, task: TaskConfig | None) -> AdaptReads:
        assert task is not None
        config = run.config
        base = run.base()
        defaults = BaseDefaults.of(base)
        settings = defaults.settings(config.continue_pretrain, has_corpus=bool(config.data.corpus))
        if not settings.curriculum.documents:
            settings = replace(settings, curriculum=CurriculumConfig())  # how none are chosen does not count
        is_joint = _is_joint(settings, task)
        training = TrainingReads.of(run, NAME, "joint" if is_joint else task.name)
        check_training(base, settings, training.engine, training.offload)
        labels = _labels(run, task, base)
        is_foreign = is_hf_directory(weights_of(base))
        general = GeneralTextReads.of(config, is_foreign=is_foreign)
        return AdaptReads(
            tasks=tuple(_member(run, member, found) for member, found in labels),
            continue_pretrain=settings,
            objective=defaults.objective(config.objective),
            gate=defaults.gate(config.gate) if general is not None or is_foreign else None,
            training=training,
            base=base,
            labels={labels_name(member, is_joint): found for member, found in labels},
            general_text=general,
            targets=tuple(TaskData.of(run, member, [UNLABELED]) for member, _ in labels if settings.curriculum.documents),
            has_own_text=general is None and is_foreign,
            moments=moments_of(base, settings),
        )

    def build(self, reads: AdaptReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        settings = reads.continue_pretrain
        n_task_rows = sum(member.rows_per_epoch for member in reads.tasks)
        if not n_task_rows:
            return Adaptation(is_adapted=False).metrics()
        if is_hf_directory(weights_of(reads.base)):
            shop.say_once(f"continue_pretrain: {said(settings, reads.objective)}")
        general = _general(shop, reads)
        assert settings.epochs is not None and settings.replay_share is not None, "settled by the base"
        if settings.replay_share and reads.general_text is not None and general is not None and not general.metrics["train"]:
            raise DataError("data.corpus: no text is left to replay; lower pretrain.held_out_share")
        n_replayed = round(n_task_rows * settings.replay_share / (1 - settings.replay_share))
        text = _chosen_text(shop, reads, result, work)
        n_text = n_first = 0  # rows an epoch beside the task's, steps before them
        if text is not None and settings.curriculum.when is When.BESIDE:
            n_text = math.ceil(text.rows / settings.epochs)
        elif text is not None:
            n_first = math.ceil(text.rows / settings.batch_rows)
        steps = n_first + math.ceil(settings.epochs * (n_task_rows + n_replayed + n_text) / settings.batch_rows)
        train = replace(
            train_config(settings, steps), trains=settings.trains, lora=settings.lora, expert_coverage=settings.expert_coverage,
            is_kept_near=bool(settings.divergence_weight),
        )  # fmt: skip
        job = {
            "stage": NAME,
            "base": str(weights_of(reads.base).resolve()),
            "tasks": [member.plain() for member in reads.tasks if member.rows_per_epoch],
            "reading": to_plain(settings.reading()),
            "general": None if general is None else str(general.path.resolve()),
            "general_rows": 0 if reads.gate is None else reads.gate.general_rows,
            "continuations": 0 if reads.gate is None else reads.gate.continuations,
            "replayed": _replayed(shop, reads, general, n_replayed),
            "replayed_rows": n_replayed,
            "divergence_weight": settings.divergence_weight,
            "text": None if text is None else str(tokens_of(work).resolve()),
            "text_rows": n_text,
            "text_steps": n_first,
            "job": {
                **reads.training.job(NAME, reads.objective, train, result, work),
                "most_increase": _most_increase(reads.gate),
                "moments_from": None if reads.moments is None else str(reads.moments.resolve()),
            },
        }
        launch(job, work, reads.training.engine)
        teachers = dict.fromkeys(name for labels in reads.labels.values() for name in Labels.of(labels).teachers)
        finished = replace(_finished(reads, job["job"], result, work), teachers=list(teachers), text=text)
        if finished.is_adapted:
            _keep_taught(reads, result)
        return finished.metrics()

    def describe(self, artifact: Artifact) -> str:
        return str(Adaptation.of(artifact))


STAGE = ContinuePretrain()


def _most_increase(gate: GateConfig | None) -> float | None:
    """Return what general text allows of a change that is to be shrunk; None where none is."""
    return gate.max_general_ppl_increase if gate is not None and gate.action is GateAction.SHRINK else None


def _general(shop: Workshop, reads: AdaptReads) -> Artifact | None:
    """Return the general text that is measured, if any."""
    if reads.general_text is not None:
        return general_text(shop, reads.general_text, reads.base)
    if reads.gate is None or not reads.has_own_text:
        return None
    return own_text(shop, reads.base, reads.gate.general_rows, OwnText.MEASURED)


def _replayed(shop: Workshop, reads: AdaptReads, general: Artifact | None, n_rows: int) -> str | None:
    """Return where the general text lies that is replayed, if any is."""
    if n_rows and reads.has_own_text:
        general = own_text(shop, reads.base, REPLAYED_ROWS, OwnText.REPLAYED)
    return None if general is None or not n_rows else str(general.path.resolve())


def _chosen_text(shop: Workshop, reads: AdaptReads, result: Path, work: Path) -> ReadText | None:
    """Choose general text and put it into the base's tokens below `work`, if the adaptation reads any."""
    if not reads.targets:
        return None
    assert reads.general_text is not None, "refused without data.corpus"
    settings, seed = reads.continue_pretrain, reads.training.seed
    near = near_text(shop, NearTextReads(
        curriculum=settings.curriculum, choice_seed=seed, text=reads.general_text, targets=reads.targets
    ))  # fmt: skip
    make_tokens(near, reads.base, work)
    shutil.copyfile(near.path / NEAR_FILE, result / NEAR_FILE)
    return read_text(near, tokens_of(work), reads.base, settings, seed)


def labels_name(task: TaskConfig, is_joint: bool) -> str:
    """Return under which name an adaptation's inputs hold a task's labels."""
    return f"pseudo_label {task.name}" if is_joint else "pseudo_label"


def _is_joint(settings: AdaptConfig, task: TaskConfig) -> bool:
    return settings.joint is not None and task.name in settings.joint


def _labels(run: Run, task: TaskConfig, base: Artifact) -> list[tuple[TaskConfig, Artifact]]:
    """Return the tasks that are adapted with this one, itself among them, and their labels.

    Raises:
        ConfigError: tasks are to be adapted together that the run has not, or in rounds.
        DataError: labels come from another model, or were made for another version of a task.
    """
    check_joint(run.config)
    joint = run.config.continue_pretrain.joint or {}
    together = [other for other in run.tasks() if other.name in joint] if task.name in joint else [task]
    found = [(member, run.require("pseudo_label", member)) for member in together]
    for member, labels in found:
        if labels.inputs["base"].digest != base.digest:
            raise DataError(
                f"{labels.path}: its labels come from another model than {base.path}; run `python -m pipelines.pseudo_label` again"
            )
        refuse_labels_of_other_version(labels, member)
    return found


def _member(run: Run, task: TaskConfig, labels: Artifact) -> Member:
    settings, found = run.config.continue_pretrain, Labels.of(labels)
    n_rows = found.rows - found.held_out if settings.reads_unselected and found.selected else found.selected
    return Member(
        task=task,
        rows=split_path(run.splits(), task, "unlabeled").absolute() if n_rows else Path(),
        labels=(labels.path / LABELS_FILE).resolve(),
        rows_per_epoch=round(n_rows * (settings.joint or {}).get(task.name, 1.0)),
    )


def check_joint(config: PipelineConfig) -> None:
    """Raise ConfigError where tasks are to be adapted together that the run has not, or in rounds."""
    joint = config.continue_pretrain.joint or {}
    missing = sorted(set(joint) - set(config.tasks))
    if missing:
        raise ConfigError(f"continue_pretrain.joint: task '{missing[0]}' is not in tasks={config.tasks}; add it there")
    if joint and config.pseudo_label.rounds.count > 1:
        raise ConfigError("pseudo_label.rounds.count: tasks in continue_pretrain.joint are adapted in one round; set it to 1")


def _keep_taught(reads: AdaptReads, result: Path) -> None:
    """Keep the lexical labellers that learnt from the other teachers: they answer together with the model."""
    for member in reads.tasks:
        labels = member.labels.parent
        if (labels / LEXICAL_FILE).is_file():
            place = taught_place(result, member.task.name)
            place.mkdir(parents=True)
            lexical_files.copy(labels, place)


def _finished(reads: AdaptReads, job: Mapping[str, Any], result: Path, work: Path) -> Adaptation:
    """Collect what a finished job says of itself, and compare its forgetting with the gate."""
    gate, found = reads.gate, finished_training(result, work, weights_of(reads.base), job)
    trained = {field.name: getattr(found, field.name) for field in fields(found)}
    losses = result / _GENERAL_FILE
    if not losses.is_file():
        return Adaptation(is_adapted=True, **trained)
    content = read_object(losses)
    general = general_perplexity(np.asarray(content["before"]), np.asarray(content["after"]))
    continuations = continuations_of(content["continuations"])
    is_taken_back = gate is not None and (not trained["kept_change"] or is_rolled_back(gate, general, continuations))
    if is_taken_back:
        for file in result.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return Adaptation(is_adapted=not is_taken_back, general=general, continuations=continuations, **trained)


def train_rank(job: dict[str, Any], rank: RankInfo) -> None:
    """Adapt on one rank."""
    from adapt.checkpoint.weights import load_model
    from adapt.model.buffers import named_state
    from adapt.train.job import TrainData, TrainJob, paging_of, run_training  # imports DeepSpeed, which parents do without
    from adapt.train.paged_adamw import weights_in_place

    spec: TrainJob = from_plain(TrainJob, job["job"], "job.yaml")
    reading: ReadingConfig = from_plain(ReadingConfig, job["reading"], "job.yaml")
    base = Path(job["base"])
    with weights_in_place(paging_of(spec, rank), only_births=True):
        model = load_model(base, share=spec.engine.expert_share(rank.rank), frozen=spec.offload.frozen_weights)
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
        general = measured_rows(Path(job["general"]), model.context_length, int(job["general_rows"]))
    if job["replayed_rows"]:
        replayed = replayed_rows(Path(job["replayed"]), model.context_length, spec.seed)
        ingredients.append(Ingredient(name="general text", source=replayed, rows_per_epoch=int(job["replayed_rows"])))
    first: FirstRows | None = None
    if job["text"] is not None:
        text = text_rows(Path(job["text"]), model.context_length, spec.seed)
        if job["text_steps"]:
            first = FirstRows(source=text, steps=int(job["text_steps"]))
        else:
            ingredients.append(Ingredient(name="chosen text", source=text, rows_per_epoch=int(job["text_rows"])))
    data = TrainData(
        training=mixed(ingredients, spec.seed),
        first=first,
        held_out=held_out,
        general=general if general else None,
        continuations=int(job["continuations"]),
        start=None if spec.train.trains is Trained.LORA else lambda: named_state(load_model(base)),
    )
    run_training(model, tokenizer, data, spec, rank, _base_as_teacher(base, model, spec, rank, float(job["divergence_weight"])))


def _base_as_teacher(base: Path, model: GPT | HFModel, spec: TrainJob, rank: RankInfo, weight: float) -> Teacher | None:
    """Return the base that a model is kept near to: the model itself without its factors, or another copy; None at weight 0."""
    if not weight:
        return None
    from adapt.checkpoint.weights import load_model
    from adapt.core.device import take_device
    from adapt.model.distillation import Teacher
    from adapt.model.hf import HFModel
    from adapt.model.lora import WithoutFactors

    before: Teaching
    if spec.train.trains is Trained.LORA:
        assert isinstance(model, HFModel), "only they are trained by factors"
        before = WithoutFactors(model)
    else:
        precision, share = spec.engine.precision, spec.engine.expert_share(rank.rank)
        dtype = precision.dtype if precision.is_rounded else None
        before = load_model(base, take_device(rank), dtype, share=share).requires_grad_(False)
    return Teacher(model=before, weight=weight, is_of_text=True, part=BASE_DIVERGENCE)
