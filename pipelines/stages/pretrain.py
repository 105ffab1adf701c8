"""Stage `pretrain`: corpus text and a tokenizer to a base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.offload import OffloadConfig
from adapt.checkpoint.vocabulary import check_vocabulary
from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, DataError
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain, to_plain
from adapt.model.config import GPTConfig
from adapt.objective_config import BalanceConfig, ObjectiveConfig, PartWeights
from adapt.text.corpus import domains_of
from adapt.text.packing import PackedCorpus, RowSource, SomeRows
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from adapt.text.tokenizer import Tokenizer
from adapt.train.engine_config import EngineConfig
from pipelines.config.schema import PretrainConfig
from pipelines.ranks.launch import launch
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.products import Training
from pipelines.stages.run import Run
from pipelines.stages.training import TrainingReads, finished_training, train_config
from pseudo_label.tasks import TaskConfig

NAME = "pretrain"


@dataclass(frozen=True, kw_only=True)
class PretrainReads(Reads):
    """The corpus in the tokens of the run's tokenizer, the model's sizes, and how it is trained."""

    model: GPTConfig
    pretrain: PretrainConfig
    balance: BalanceConfig
    training: TrainingReads
    corpus: CorpusReads
    tokenizer: Artifact

    @property
    def domains(self) -> list[str]:
        return domains_of(self.corpus.corpus_files)


class Pretrain(Stage[PretrainReads]):
    """Pretrain `model` on `data.corpus`: next-token loss, a small share of masked spans, and the run's balance loss."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> PretrainReads:
        config, model = run.config, run.own_model()
        tokenizer = run.require("tokenizer")
        check_vocabulary(Tokenizer.load(tokenizer.path), model)
        training = TrainingReads.of(run, NAME, None)
        check_model(model, config.pretrain, training.engine, training.offload)  # before anything is read
        found = PretrainReads(
            model=model,
            pretrain=config.pretrain,
            balance=config.objective.balance,
            training=training,
            corpus=CorpusReads.of(config.data),
            tokenizer=tokenizer,
        )
        check_repeats(config.pretrain.repeats or {}, found.domains)
        return found

    def build(self, reads: PretrainReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        settings = reads.pretrain
        objective = ObjectiveConfig(weights=PartWeights(pseudo_label=settings.span_mask_weight), balance=reads.balance)
        train = replace(
            train_config(settings, settings.steps),
            save_precision=settings.save_precision,
            keeps_moments=settings.keeps_moments,
        )
        tokenizer = Tokenizer.load(reads.tokenizer.path)
        rows, held_out = tokenize_corpus(reads.corpus.corpus_files, tokenizer, work / "corpus", settings.held_out_share)
        repeats = settings.repeats or {}
        job = {
            "stage": NAME,
            "model": to_plain(reads.model),
            "tokenizer": str(reads.tokenizer.path),
            "corpus": str(rows),
            "held_out": str(held_out),
            "held_out_rows": settings.held_out_rows,
            "span_mask_share": settings.span_mask_share,
            "domains": reads.domains,
            "repeats": [repeats.get(domain, 1) for domain in reads.domains],
            "job": reads.training.job(NAME, objective, train, result, work),
        }
        launch(job, work, reads.training.engine)
        return finished_training(result, work, reads.model, job["job"]).metrics()

    def describe(self, artifact: Artifact) -> str:
        return str(Training.of(artifact))


STAGE = Pretrain()


def check_model(model: GPTConfig, settings: PretrainConfig, engine: EngineConfig, offload: OffloadConfig) -> None:
    """Raise ConfigError for a model that cannot be, cannot be shared or held as the engine says, or would learn nothing."""
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.gpt import GPT
    from adapt.train.memory_checks import check_memory

    check_share(GPT(model).expert_counts, engine.expert_parallel)
    check_memory(model, engine, offload, settings.optimizer, batch_rows=settings.batch_rows)
    if model.even_routing:
        raise ConfigError("model.even_routing: is for measuring random weights; a router trained under it would decide nothing")


def check_repeats(repeats: Mapping[str, int], domains: Sequence[str]) -> None:
    """Raise ConfigError where domains are to be repeated that the corpus has not, or all are left out."""
    strange = sorted(set(repeats) - set(domains))
    if strange:
        raise ConfigError(f"pretrain.repeats: the corpus has no domain {strange[0]}; it has {', '.join(domains)}")
    if not any(repeats.get(domain, 1) for domain in domains):
        raise ConfigError("pretrain.repeats: every domain of the corpus is left out; give one of them at least 1")


def train_rank(job: dict[str, Any], rank: RankInfo) -> None:
    """Pretrain on one rank."""
    from adapt.model.expert_parallel import own_experts
    from adapt.model.gpt import GPT, materialize
    from adapt.train.job import TrainData, TrainJob, paging_of, run_training  # imports DeepSpeed, which parents do without
    from adapt.train.paged_adamw import weights_in_place

    spec: TrainJob = from_plain(TrainJob, job["job"], "job.yaml")
    config: GPTConfig = from_plain(GPTConfig, job["model"], "job.yaml")
    tokenizer = Tokenizer.load(Path(job["tokenizer"]))
    corpus = open_tokenized(Path(job["corpus"]))
    repeats_D = np.asarray(job["repeats"], np.int64)[corpus.domains_D]
    training = PackedCorpus(corpus, config.context_length, spec.seed, float(job["span_mask_share"]), tokenizer.mask_id, repeats_D)
    if not len(training):
        raise DataError("data.corpus: no text is left to train on; lower pretrain.held_out_share, or raise pretrain.repeats")
    held_out: dict[str, RowSource] = {}
    rest = open_tokenized(Path(job["held_out"]))
    for number, domain in enumerate(job["domains"]):
        rows = PackedCorpus(rest.of_domain(number), config.context_length, 0, 0.0, None)
        if len(rows):
            held_out[domain] = SomeRows(rows, int(job["held_out_rows"]))
    with weights_in_place(paging_of(spec, rank), only_births=True):
        model = materialize(own_experts(GPT(config), spec.engine.expert_share(rank.rank)), spec.seed)
    run_training(model, tokenizer, TrainData(training=training, held_out=held_out), spec, rank)
