"""Stage `corpus`: raw text to a cleaned corpus in shards, with a page of what was dropped and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, DataError
from adapt.core.json_files import write_json
from adapt.core.precision import Precision
from adapt.text.cleaning.config import (
    CorpusConfig,
    Executor,
    NormaliseConfig,
    OverlapConfig,
    PerplexityConfig,
    Personal,
    QualityConfig,
    RayConfig,
    SlurmConfig,
)
from adapt.text.cleaning.config import DuplicatesConfig as Duplicates
from adapt.text.cleaning.normalising import check_normalising
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.corpus import find_corpus
from adapt.text.rows.directories import files_of
from adapt.text.shards import SHARDS
from pipelines.stages.contract import Files, Reads, Stage, Workshop, unkeyed
from pipelines.stages.corpus_losses import BaseLosses
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.models import open_model_artifact, weights_of
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

NAME = "corpus"
PAGE = "corpus.html"


@dataclass(frozen=True, kw_only=True)
class CleaningReads(Reads):
    """Raw text, the files of evaluation rows that are kept out, and the settings."""

    normalise: NormaliseConfig
    quality: QualityConfig
    personal_data: list[Personal]
    overlap: OverlapConfig
    duplicates: Duplicates
    perplexity: PerplexityConfig
    samples: int
    shard_mb: int
    precision: Precision | None
    base: Artifact | None
    raw: CorpusReads
    evaluation: Files
    workers: int = unkeyed("a file is cleaned the same way beside others")
    executor: Executor = unkeyed("a file is cleaned the same way wherever it is")
    slurm: SlurmConfig = unkeyed("a file is cleaned the same way wherever it is")
    ray: RayConfig = unkeyed("a file is cleaned the same way wherever it is")

    def settings(self) -> CorpusConfig:
        return CorpusConfig(
            normalise=self.normalise, quality=self.quality, personal_data=self.personal_data, overlap=self.overlap,
            duplicates=self.duplicates, perplexity=self.perplexity, samples=self.samples,
            shard_mb=self.shard_mb, workers=self.workers, executor=self.executor, slurm=self.slurm, ray=self.ray,
        )  # fmt: skip


class CorpusStage(Stage[CleaningReads]):
    """Clean `data.corpus`; the artifact's directory is given to later commands as `data.corpus`."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> CleaningReads:
        config = run.config.corpus
        if importlib.util.find_spec("datatrove") is None:
            raise ConfigError("corpus: cleaning text needs datatrove; pip install 'moe-adapt[corpus]'")
        if config.executor is Executor.RAY and importlib.util.find_spec("ray") is None:
            raise ConfigError("corpus.executor=ray needs ray; pip install 'moe-adapt[corpus-ray]', or use corpus.executor=local")
        check_normalising(config.normalise, wants_scripts=config.quality.max_mixed_script is not None)
        base = None if config.perplexity.checkpoint is None else open_model_artifact(
            Path(config.perplexity.checkpoint), "corpus.perplexity.checkpoint"
        )  # fmt: skip
        return CleaningReads(
            normalise=config.normalise,
            quality=config.quality,
            personal_data=config.personal_data,
            overlap=OverlapConfig(characters=config.overlap.characters, shortest=config.overlap.shortest),
            duplicates=config.duplicates,
            # The base counts by its digest; without one nothing else of this section counts.
            perplexity=PerplexityConfig() if base is None else replace(config.perplexity, checkpoint=None),
            samples=config.samples,
            shard_mb=config.shard_mb,
            precision=None if base is None else run.scorer.precision,
            base=base,
            raw=CorpusReads.of(run.config.data),
            evaluation=_evaluation_files(config.overlap.files),
            workers=config.workers,
            executor=config.executor,
            slurm=config.slurm,
            ray=config.ray,
        )

    def build(self, reads: CleaningReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.text.cleaning.passes import clean_corpus  # imports datatrove
        from pipelines.report_page.corpus_page import corpus_page

        config = reads.settings()
        index = work / "evaluation" if reads.evaluation.paths else None
        if index is not None and not (index / "index.json").is_file():
            EvaluationIndex.of(reads.evaluation.paths, config.overlap.characters, config.overlap.shortest).save(index)
        losses = None
        if reads.base is not None:
            assert reads.precision is not None
            losses = BaseLosses(
                weights=weights_of(reads.base).resolve(), precision=reads.precision, tokens=config.perplexity.tokens
            )
        cleaned = clean_corpus(reads.raw.corpus_files, index, config, result, work, losses)
        tally = cleaned.tally
        for name in reads.evaluation.paths:
            tally.overlaps.setdefault(name, 0)
        shards = [asdict(shard) for shard in cleaned.shards]
        write_json(result / SHARDS, {"shards": shards, "counts": asdict(tally)})
        (result / PAGE).write_text(corpus_page(asdict(tally), shards), encoding="utf-8")
        return {
            "shards": len(cleaned.shards),
            "documents": sum(tally.kept.values()),
            "bytes": sum(shard.bytes for shard in cleaned.shards),
            "read": sum(tally.read.values()),
            "dropped": tally.dropped,
            "masked": tally.masked,
            "overlaps": tally.overlaps,
        }

    def describe(self, artifact: Artifact) -> str:
        m = artifact.metrics
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(m["dropped"].items(), key=lambda item: -item[1]))
        return (
            f"{m['documents']:,} of {m['read']:,} documents in {m['shards']} shards, {m['bytes']:,} bytes; dropped: {dropped or 0}"
        )


STAGE = CorpusStage()


def _evaluation_files(patterns: list[str]) -> Files:
    """Return files by the end of their path, as far as it tells them apart. Raises DataError where nothing is there."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        try:
            files = [file.path for file in find_corpus([pattern])]
        except DataError as error:
            raise DataError(str(error).replace("data.corpus", "corpus.overlap.files")) from error
        for file in files:
            for part in files_of(file).values():
                names = ["/".join(part.parts[-length:]) for length in range(1, len(part.parts) + 1)]
                name = next(name for name in names[1:] or names if name not in found or found[name].samefile(part))
                found[name] = part
    return Files(found)
