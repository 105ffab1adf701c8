"""Stage `pretrain`: corpus text and a tokenizer to a base model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.vocabulary import check_vocabulary
from adapt.core.artifacts import Artifact, StageKey
from adapt.core.errors import ConfigError, DataError
from adapt.core.runtime import RankInfo
from adapt.core.typed import from_plain, to_plain
from adapt.model.config import GPTConfig
from adapt.objective_config import ObjectiveConfig, PartWeights
from adapt.text.corpus import domains_of, find_corpus
from adapt.text.packing import PackedCorpus, RowSource, SomeRows
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from adapt.text.tokenizer import Tokenizer
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.train_config import TrainConfig
from pipelines.ranks.launch import launch
from pipelines.stages.contract import Plan, Walk, plain_settings
from pipelines.stages.tokenizer import corpus_digests
from pseudo_label.tasks import TaskConfig

NAME = "pretrain"
VERSION = 1
PER_TASK = False


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Pretrain `model` on `data.corpus`: next-token loss, a small share of masked spans, and the run's balance loss."""
    config = walk.config
    model = walk.own_model()
    tokenizer_artifact = walk.require("tokenizer")
    tokenizer = Tokenizer.load(tokenizer_artifact.path)
    check_vocabulary(tokenizer, model)
    check_model(model, walk.engine)  # before anything is read
    files = find_corpus(config.data.corpus, config.data.domain_field, config.data.encoding)
    domains = domains_of(files)
    repeats = config.pretrain.repeats or {}
    check_repeats(repeats, domains)
    key = StageKey(
        stage=NAME,
        version=VERSION,
        config=plain_settings(
            model=model,
            pretrain=config.pretrain,
            domain_field=config.data.domain_field,
            **config.data.reading(),
            balance=config.objective.balance,
            **walk.engine.numerics(),
            seed=config.seed,
        ),
        inputs={"tokenizer": tokenizer_artifact},
        files=corpus_digests(files),
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        settings = config.pretrain
        weights = PartWeights(pseudo_label=settings.span_mask_weight)
        objective = ObjectiveConfig(weights=weights, balance=config.objective.balance)
        train = dataclasses.replace(
            train_config(settings, settings.steps),
            save_precision=settings.save_precision,
            keeps_moments=settings.keeps_moments,
        )
        rows, held_out = tokenize_corpus(files, tokenizer, work / "corpus", settings.held_out_share)
        job = {
            "stage": NAME,
            "model": to_plain(model),
            "tokenizer": str(tokenizer_artifact.path),
            "corpus": str(rows),
            "held_out": str(held_out),
            "held_out_rows": settings.held_out_rows,
            "span_mask_share": settings.span_mask_share,
            "domains": domains,
            "repeats": [repeats.get(domain, 1) for domain in domains],
            "job": training_job(walk, NAME, None, objective, train, result, work),
        }
        launch(job, work, walk.engine)
        return training_metrics(result, work)

    return Plan(key=key, build=build, describe=describe_training)


def check_model(model: GPTConfig, engine: EngineConfig) -> None:
    """Raise ConfigError for a model that cannot be, cannot be shared or held as the engine says, or would learn nothing."""
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.gpt import GPT
    from adapt.train.memory_plan import check_memory

    check_share(GPT(model).expert_counts, engine.expert_parallel)
    check_memory(model, engine)
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
    from adapt.train.job import TrainData, TrainJob, run_training  # imports DeepSpeed, which parents do without

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
    model = materialize(own_experts(GPT(config), spec.engine.expert_share(rank.rank)), spec.seed)
    run_training(model, tokenizer, TrainData(training=training, held_out=held_out), spec, rank)


def train_config(settings: Any, steps: int) -> TrainConfig:
    """Build the loop's settings from a stage's section."""
    return TrainConfig(
        steps=steps,
        batch_rows=settings.batch_rows,
        optimizer=settings.optimizer,
        save_every_steps=settings.save_every_steps,
    )


def training_job(
    walk: Walk, stage: str, task: str | None, objective: ObjectiveConfig, train: TrainConfig, result: Path, work: Path
) -> dict[str, Any]:
    """Build the plain form of `TrainJob` that ranks read.

    Raises:
        ConfigError: engine and optimizer do not go together.
    """
    config = walk.config
    check_optimizer(walk.engine, train.optimizer)
    return {
        "engine": to_plain(walk.engine),
        "objective": to_plain(objective),
        "train": to_plain(train),
        "tracker": to_plain(config.tracker),
        "name": f"{walk.name}/{stage}" + (f"/{task}" if task else ""),
        "group": walk.group,
        "stage": stage,
        "seed": config.seed,
        "result": str(result.resolve()),
        "work": str(work.resolve()),
        "tracking_dir": str((walk.store.root / walk.group).resolve()),
    }


def training_metrics(result: Path, work: Path) -> dict[str, Any]:
    """Collect what a finished job says of itself for the manifest."""
    held_out = json.loads((result / "held_out.json").read_text(encoding="utf-8"))
    outcome = json.loads((work / "outcome.json").read_text(encoding="utf-8"))
    with (result / "history.jsonl").open(encoding="utf-8") as stream:
        last = json.loads(list(stream)[-1])
    return {"held_out": held_out, "steps": int(last["step"]), "loss": last["loss/total"], **outcome}


def describe_training(artifact: Artifact) -> str:
    """Say in a line what a training stage did."""
    m = artifact.metrics
    parts = []
    for name, ledger in m["held_out"].items():
        before, after = token_loss(ledger["before"]), token_loss(ledger["after"])
        parts.append(f"{name} {before:.3f} -> {after:.3f}")
    skipped = f" ({m['skipped_steps']} of them skipped, their gradients overflowed fp16)" if m.get("skipped_steps") else ""
    return f"{m['steps']} steps{skipped}, {m['tokens_per_s']:.0f} tokens/s, held-out loss per token: " + ", ".join(parts)


def token_loss(ledger: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean loss over the tokens of all kinds."""
    parts = [part for name, part in ledger.items() if name != "balance"]
    count = sum(part["count"] for part in parts)
    return sum(part["value"] * part["count"] for part in parts) / count if count else 0.0
