"""Stage `distil`: a sparse base and unlabeled text to a dense student of the base.

The router's decisions are counted over some rows of the text; experts are merged by them (`adapt.checkpoint.merging`); then the
student is trained on the text by the divergence of its next-token distributions from the base's. A base of this project gives
one of this project, a Hugging Face directory its family's dense sibling.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import is_delta, is_hf_directory
from adapt.checkpoint.vocabulary import load_tokenizer, tokenizer_of
from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError, DataError
from adapt.core.json_files import read_object, write_json
from adapt.core.progress import progress
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain
from adapt.objective_config import DISTILLATION, BalanceConfig, ObjectiveConfig, PartWeights
from adapt.text.corpus import domains_of
from adapt.text.packing import PackedCorpus, RowSource, SomeRows
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from pipelines.config.distil_settings import DistilConfig
from pipelines.ranks.launch import launch
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.models import context_of, weights_of
from pipelines.stages.products import Training
from pipelines.stages.run import Run
from pipelines.stages.training import TrainingReads, finished_training, train_config
from pseudo_label.tasks import TaskConfig

NAME = "distil"
_MERGED, _SOURCE_FILE = "merged", "source.json"
_MOST_ROW_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Student(Training):
    """Of `distil`: held-out losses of the student and of its sparse source, in nats a token by domain; weights of both.

    `usage` has for each sparse layer the share of routed pairs that each expert took.
    """

    source_loss: dict[str, float] = field(default_factory=dict)
    source_weights: int = 0
    weights: int = 0
    usage: list[list[float]] = field(default_factory=list)

    def __str__(self) -> str:
        sources = ", ".join(f"{name} {loss:.3f}" for name, loss in self.source_loss.items())
        return f"{self.weights:,} weights of {self.source_weights:,}; {super().__str__()}; the sparse source's loss: {sources}"


@dataclass(frozen=True, kw_only=True)
class DistilReads(Reads):
    """The sparse base, text, and how the student starts and is trained."""

    base: Artifact
    distil: DistilConfig
    training: TrainingReads
    corpus: CorpusReads

    @property
    def row_tokens(self) -> int:
        context = context_of(weights_of(self.base))
        return min(self.distil.row_tokens or _MOST_ROW_TOKENS, context)


class Distil(Stage[DistilReads]):
    """Merge the experts of `checkpoint`, or of the run's base, and train the dense student on `data.corpus`."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> DistilReads:
        base, settings = run.base(), run.config.distil
        training = TrainingReads.of(run, NAME, None)
        check_base(weights_of(base), settings, training)
        return DistilReads(base=base, distil=settings, training=training, corpus=CorpusReads.of(run.config.data))

    def build(self, reads: DistilReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.weights import load_config  # imports torch

        settings, place = reads.distil, weights_of(reads.base)
        domains = domains_of(reads.corpus.corpus_files)
        rows, held_out = tokenize_corpus(reads.corpus.corpus_files, tokenizer_of(place), work / "corpus", settings.held_out_share)
        job = {
            "stage": NAME,
            "source": str(place.resolve()),
            "student": str((work / _MERGED).resolve()),
            "corpus": str(rows),
            "held_out": str(held_out),
            "held_out_rows": settings.held_out_rows,
            "row_tokens": reads.row_tokens,
            "domains": domains,
            "weight": settings.weight,
            "temperature": settings.temperature,
        }
        if not (work / _SOURCE_FILE).is_file():
            found = _merge(job, settings, reads.training.seed)
            write_json(work / _SOURCE_FILE, found)  # last: it says that the student is whole
        weights = PartWeights(context=settings.text_weight, prompt=0.0, pseudo_label=0.0)
        objective = ObjectiveConfig(weights=weights, balance=BalanceConfig(weight=0.0))
        train = replace(train_config(settings, settings.steps), save_precision=settings.save_precision)
        training = reads.training.job(NAME, objective, train, result, work)
        launch({**job, "job": training}, work, reads.training.engine)
        student = work / _MERGED
        trained = finished_training(result, work, student if is_hf_directory(student) else load_config(student), training)
        return Student(
            **{one.name: getattr(trained, one.name) for one in fields(trained)}, **read_object(work / _SOURCE_FILE)
        ).metrics()

    def describe(self, artifact: Artifact) -> str:
        return str(Student.of(artifact))


STAGE = Distil()


def check_base(place: Path, settings: DistilConfig, training: TrainingReads) -> None:
    """Raise ConfigError or CheckpointError for a base that has no dense student, or settings that do not fit it."""
    from adapt.checkpoint.merging.students import check_source, student_config  # these import torch
    from adapt.checkpoint.weights import load_config
    from adapt.model.expert_parallel import check_share
    from adapt.train.memory_checks import check_memory

    if is_delta(place):
        raise CheckpointError(
            f"{place}: is a delta, whose student would need its base too; export it with export.form=merged first"
        )
    check_source(place)
    check_share((), training.engine.expert_parallel)
    if not is_hf_directory(place):
        student = student_config(load_config(place), settings.merge.groups)
        check_memory(student, training.engine, training.offload, settings.optimizer, batch_rows=settings.batch_rows)


def _merge(job: Mapping[str, Any], settings: DistilConfig, seed: int) -> dict[str, Any]:
    """Count the sparse model's routing, measure its held-out loss, write the merged student, and return what was found."""
    from adapt.checkpoint.merging.students import write_student  # these import torch
    from adapt.checkpoint.weights import count_weights, load_model
    from adapt.model.batches import collate
    from adapt.model.expert_usage import usage_of
    from adapt.objective import mean_loss

    source, student = Path(job["source"]), Path(job["student"])
    model = load_model(source)
    training = PackedCorpus(open_tokenized(Path(job["corpus"])), int(job["row_tokens"]), seed, 0.0, None)
    if not len(training):
        raise DataError("data.corpus: no text is left to train on; lower distil.held_out_share")
    counted = SomeRows(training, settings.merge.rows)
    numbers = progress(range(len(counted)), "counting the routers' decisions", unit="row")
    usage = usage_of(model, (collate([counted.row(number, 0)]) for number in numbers))
    losses = {name: mean_loss(model, (collate([rows.row(n, 0)]) for n in range(len(rows)))) for name, rows in _held_out(job)}
    del model
    gc.collect()
    shutil.rmtree(student, ignore_errors=True)
    student.mkdir(parents=True)
    write_student(student, source, usage, settings.merge, seed)
    return {
        "source_loss": losses,
        "source_weights": count_weights(source),
        "weights": count_weights(student),
        "usage": [[round(share, 4) for share in layer.share_E.tolist()] for layer in usage],
    }


def _held_out(job: Mapping[str, Any]) -> Iterator[tuple[str, RowSource]]:
    """Yield each domain's held-out rows, where it has some."""
    rest = open_tokenized(Path(job["held_out"]))
    for number, domain in enumerate(job["domains"]):
        rows = PackedCorpus(rest.of_domain(number), int(job["row_tokens"]), 0, 0.0, None)
        if len(rows) and int(job["held_out_rows"]):
            yield domain, SomeRows(rows, int(job["held_out_rows"]))


def train_rank(job: dict[str, Any], rank: RankInfo) -> None:
    """Distil on one rank."""
    from adapt.checkpoint.weights import load_model
    from adapt.core.device import take_device
    from adapt.model.distillation import Teacher
    from adapt.train.job import TrainData, TrainJob, run_training  # imports DeepSpeed, which parents do without

    spec: TrainJob = from_plain(TrainJob, job["job"], "job.yaml")
    precision = spec.engine.precision
    source = load_model(Path(job["source"]), take_device(rank), precision.dtype if precision.is_rounded else None)
    teacher = Teacher(
        model=source.requires_grad_(False), part=DISTILLATION, weight=float(job["weight"]), temperature=float(job["temperature"])
    )
    student = load_model(Path(job["student"]))
    tokenizer = load_tokenizer(Path(job["student"]), student)
    training = PackedCorpus(open_tokenized(Path(job["corpus"])), int(job["row_tokens"]), spec.seed, 0.0, None)
    run_training(student, tokenizer, TrainData(training=training, held_out=dict(_held_out(job))), spec, rank, teacher)
