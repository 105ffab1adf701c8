"""Scores of a task's rows by one model: an artifact of its own, so that deciding, selecting and evaluating never score twice.

Rows are scored in chunks, a Parquet part each. A killed run goes on behind its last part; with several ranks each takes every
n-th chunk. Chunks are the same whatever the number of ranks, and so are the scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapt.checkpoint.offload import OffloadConfig
from adapt.core.artifacts import Artifact, StageKey, write_atomically
from adapt.core.errors import DataError
from adapt.core.faults import need_room, writable
from adapt.core.json_files import json_text, read_object
from adapt.core.precision import Precision
from adapt.core.progress import progress
from adapt.core.runtime import RankInfo
from adapt.core.typed import digest_of, from_plain, to_plain
from adapt.scoring.scorer_config import ScorerConfig
from adapt.train.engine_config import EngineConfig
from pipelines.ranks.launch import launch
from pipelines.stages.contract import Reads, Workshop, order_of, unkeyed
from pipelines.stages.models import weights_of
from pipelines.stages.rows import TaskData, domain_texts
from pipelines.stages.run import Run
from pseudo_label.cut_rows import counts_of_cut, cut_rows, said_of_cut
from pseudo_label.labelling import ScoringConfig, TaskScorer, content_free_rows
from pseudo_label.prompts import Prompt
from pseudo_label.store import SCORES_FILE, join_scores, read_scores, write_scores
from pseudo_label.tasks import TaskConfig, TaskRow, read_rows
from pseudo_label.zero_shot import PassScores, PromptKeys, ScoringPass

NAME = "score"
VERSION = 2  # prompts of Hugging Face bases are one text
_CHUNK_ROWS = 256
_TASK_KEYS = ("fields", "label_words", "label_tree", "shorten", "candidates")


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """What a rank needs to score its chunks; `lines` are the rows' lines in `source`, `shortlists` theirs by line."""

    task: TaskConfig
    weights: str
    source: str
    lines: list[int]
    shortlists: dict[str, list[int]]
    passes: list[ScoringPass]
    domain: list[dict[str, str]]
    scorer: ScorerConfig
    offload: OffloadConfig
    checkpoint: str
    parts: str

    def place(self, chunk: int) -> Path:
        return Path(self.parts) / f"part-{chunk:05d}.parquet"

    @property
    def n_chunks(self) -> int:
        return math.ceil(len(self.lines) / _CHUNK_ROWS)


@dataclass(frozen=True, kw_only=True)
class ScorerReads(Reads):
    """How a stage's rows are scored."""

    precision: Precision
    scorer: ScorerConfig = unkeyed("a score is the same in any batch; its precision is keyed")
    offload: OffloadConfig = unkeyed("paged weights give the same bits")
    engine: EngineConfig = unkeyed("chunks are the same on any number of ranks")

    @classmethod
    def of(cls, run: Run) -> ScorerReads:
        """Return how a run scores; what `scorer.precision=auto` came to is said."""
        scorer = run.scorer
        return cls(precision=scorer.precision, scorer=scorer, offload=run.config.offload, engine=run.config.engine)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Passes over a split's rows, and the seconds that scoring them took when it was done."""

    passes: list[PassScores]
    seconds: float


def scores_of(
    shop: Workshop,
    how: ScorerReads,
    data: TaskData,
    model: Artifact,
    split: str,
    rows: Sequence[TaskRow],
    passes: Sequence[ScoringPass],
) -> Scored:
    """Score rows of a split under every pass, or take the scores that are there; linked as `score/<task>/<split>-<model stage>`."""
    if not rows:
        return Scored(passes=[PassScores(what=what, rows=[], nulls=[]) for what in passes], seconds=0.0)
    task = data.task
    job = ScoreJob(
        task=task,
        weights=str(weights_of(model).resolve()),
        source=str(data.path(split).absolute()),  # not where a link leads: the ending says the kind
        lines=[row.line for row in rows],
        shortlists={str(row.line): list(row.shortlist) for row in rows if row.shortlist is not None},
        passes=list(passes),
        domain=domain_texts(shop, data, (what.null for what in passes)),
        scorer=how.scorer,
        offload=how.offload,
        checkpoint=model.digest,
        parts="",
    )
    key = StageKey(
        stage=NAME, version=VERSION, config=_settings(task, rows, passes, job.domain, how.precision), inputs={"model": model}
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        started = time.monotonic()
        whole = from_plain(ScoreJob, {**to_plain(job), "parts": str(work)}, "job")
        n_ranks = min(how.engine.world_size, whole.n_chunks)
        if n_ranks == 1:
            _score_chunks(whole, rows, range(whole.n_chunks))
        else:
            launch({"stage": NAME, "job": to_plain(whole)}, work, how.engine, n_ranks)
            data.files.refuse_changed()  # ranks read the rows again
        places = [whole.place(chunk) for chunk in range(whole.n_chunks)]
        need_room(result, sum(place.stat().st_size for place in places), "joining the scores")
        join_scores(result / SCORES_FILE, places)
        seconds = time.monotonic() - started
        return {"rows": len(rows), "passes": [what.name for what in passes], "seconds": seconds, **_cut_rows(places)}

    artifact = shop.produce(key, build, f"{NAME}/{task.name}/{split}-{model.stage}")
    if (cut := said_of_cut(artifact.metrics, len(rows))) is not None:
        shop.say_once(f"{task.name} {split}: {cut}")
    return Scored(passes=read_scores(artifact.file(SCORES_FILE), task, rows), seconds=float(artifact.metrics["seconds"]))


def content_free_keys(
    shop: Workshop, how: ScorerReads, data: TaskData, model: Artifact, scoring: ScoringConfig
) -> list[PromptKeys]:
    """Return the reference prompt's keys of texts that say nothing; none for tasks whose rows bring their own candidates."""
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # imports torch

    task = data.task
    if task.candidates is not None:
        return []
    opened = open_checkpoint(weights_of(model), how.scorer, how.offload)
    scoring = replace(scoring, domain=domain_texts(shop, data, (criterion.null for _, criterion in scoring.pairs(task))))
    scorer = TaskScorer(task, scoring, opened.scorer, opened.tokenizer)
    return scorer.keys(content_free_rows(task), [task.reference])


def score_rank(content: dict[str, Any], rank: RankInfo) -> None:
    """Score every n-th chunk on one rank."""
    job: ScoreJob = from_plain(ScoreJob, content["job"], "job.yaml")
    wanted = set(job.lines)
    lists = {int(line): tuple(places) for line, places in job.shortlists.items()}
    read = (row for row in read_rows(Path(job.source), job.task) if row.line in wanted)
    rows = [replace(row, shortlist=lists.get(row.line)) for row in read]
    _score_chunks(job, rows, range(rank.rank, job.n_chunks, rank.world_size))


def _score_chunks(job: ScoreJob, rows: Sequence[TaskRow], chunks: range) -> None:
    from adapt.checkpoint.open_checkpoint import open_checkpoint

    left = [chunk for chunk in chunks if not job.place(chunk).is_file()]
    if not left:
        return
    opened = open_checkpoint(Path(job.weights), job.scorer, job.offload)
    config = ScoringConfig(prompts=list(dict.fromkeys(what.prompt for what in job.passes)), domain=job.domain)
    scorer = TaskScorer(job.task, config, opened.scorer, opened.tokenizer)
    prompt = Prompt(job.task, job.passes[0].prompt, opened.tokenizer, opened.scorer.context_length)
    for chunk in progress(left, f"scoring {job.task.name}", total=len(left), unit="chunk"):
        some = rows[chunk * _CHUNK_ROWS : (chunk + 1) * _CHUNK_ROWS]
        place = job.place(chunk)
        unfinished = place.with_suffix(".unfinished")
        try:
            scored = scorer.score(some, job.passes)
        except DataError as error:
            raise DataError(f"{job.source}: {error}") from error
        counted = cut_rows(some, prompt)
        with writable(place.parent):
            write_atomically(place.with_suffix(".json"), json_text(counted))
            write_scores(unfinished, job.task, some, scored, job.checkpoint)
            unfinished.replace(place)


def _cut_rows(places: Sequence[Path]) -> dict[str, Any]:
    """Return how many rows were cut, how long the longest of them is, and which of them are alike then."""
    files = [place.with_suffix(".json") for place in places]
    return counts_of_cut(read_object(file) for file in files if file.is_file())


def _settings(
    task: TaskConfig, rows: Sequence[TaskRow], passes: Sequence[ScoringPass], domain: list[dict[str, str]], precision: Precision
) -> dict[str, Any]:
    """Return all that scores depend on beside the model."""
    plain = to_plain(task)
    content = [(row.line, dict(row.texts), row.candidates) for row in rows]
    lists = [row.shortlist for row in rows]
    return {
        **{name: plain[name] for name in _TASK_KEYS},
        "order": order_of(task),
        "prompts": {what.prompt: {**plain["prompts"][what.prompt], "criterion": None} for what in passes},
        "passes": to_plain(list(passes)),
        **({"domain": digest_of(domain)} if domain else {}),
        "rows": digest_of(content),
        **({"shortlists": digest_of(lists)} if any(places is not None for places in lists) else {}),
        "precision": precision.value,
    }
