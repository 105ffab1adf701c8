"""Stage `import_checkpoint`: a foreign checkpoint to an artifact that every stage takes as `checkpoint=`.

`importer` says which program wrote it, `source` is its directory. Names and shapes are accounted for before anything is written;
weights go through memory one parameter at a time. On this command line `tokenizer=FILE` is short for
`import_checkpoint.tokenizer=FILE` (everywhere else `tokenizer` is the section of the tokenizer that a run trains).
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.checkpoint.hf_directory import artifact_of_files
from adapt.checkpoint.vocabulary import check_vocabulary, open_tokenizer
from adapt.core.artifacts import Artifact
from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from adapt.core.faults import writable
from adapt.core.typed import to_plain
from adapt.model.config import GPTConfig
from adapt.text.contract import TextTokenizer
from pipelines.stages.contract import Files, Reads, Stage, Workshop, unkeyed
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

if TYPE_CHECKING:
    from adapt.checkpoint.importers.contract import ForeignCheckpoint

NAME = "import_checkpoint"
_PROBE = "今天天气很好，我们一起去公园散步。这句话表达的是满意还是不满意？"


@dataclass(frozen=True, kw_only=True)
class ImportReads(Reads):
    """The foreign checkpoint as its importer reads it, and the tokenizer that was given, if any."""

    importer: str
    residual_axis: Any
    model: GPTConfig
    source: Artifact
    files: Files
    foreign: ForeignCheckpoint = unkeyed("the importer's reading of source; settings that change it change model")
    text_tokenizer: TextTokenizer | None = unkeyed("files holds it")
    keeps_text: bool | None = unkeyed("follows from the tokenizer")


class ImportCheckpoint(Stage[ImportReads]):
    """Import `source`, written by `importer`, with the tokenizer that was given, if any."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> ImportReads:
        from adapt.checkpoint.importers.contract import all_importers  # imports torch

        config = run.config
        settings = config.import_checkpoint
        names = all_importers()
        if config.importer is None:
            raise ConfigError(f"no importer given; set importer=NAME; there are: {', '.join(names)}")
        importer = names.get(config.importer)
        if config.source is None:
            raise ConfigError("no source given; set source=DIR, the directory of the foreign checkpoint")
        source = Path(config.source)
        tokenizer = None if settings.tokenizer is None else open_tokenizer(Path(settings.tokenizer))
        keeps_text = None if tokenizer is None else _check_round_trip(tokenizer)
        foreign = importer(source, settings.options(), None if tokenizer is None else tokenizer.vocab_size)
        if tokenizer is not None:
            try:
                check_vocabulary(tokenizer, foreign.config)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace("model.vocab_size", f"{NAME}.vocab_size")) from error
        return ImportReads(
            importer=config.importer,
            residual_axis=settings.residual_axis,
            model=foreign.config,
            source=artifact_of_files(source.resolve(), f"source of {config.importer}", foreign.files, {}),
            files=Files() if settings.tokenizer is None else Files({"tokenizer": Path(settings.tokenizer)}),
            foreign=foreign,
            text_tokenizer=tokenizer,
            keeps_text=keeps_text,
        )

    def build(self, reads: ImportReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.weights import save_model

        foreign, tokenizer = reads.foreign, reads.text_tokenizer
        try:
            with writable(result):
                save_model(result, foreign.config, foreign.tensors(), tokenizer)
        except AdaptError:
            for place in (result, work):
                shutil.rmtree(place, ignore_errors=True)
            raise
        text = "none" if tokenizer is None else {"source": tokenizer.source, "keeps_text_exactly": reads.keeps_text}
        return {"report": to_plain(foreign.report), "tokenizer": text, "files": len(foreign.files)}

    def describe(self, artifact: Artifact) -> str:
        report = artifact.metrics["report"]
        unused = sum(report["unused"].values())
        tokenizer = "no tokenizer" if artifact.metrics["tokenizer"] == "none" else "with its tokenizer"
        return (
            f"{report['read']} tensors read from {artifact.metrics['files']} files, {report['mapped']} mapped, "
            f"{unused} known to be unused, {report['missing']} missing, {report['left_over']} left over; {tokenizer}"
        )


STAGE = ImportCheckpoint()


def _check_round_trip(tokenizer: TextTokenizer) -> bool:
    """Return whether Chinese text comes back as it was; full-width punctuation may come back in its narrow form.

    Raises:
        CheckpointError: characters are lost.
    """
    back = tokenizer.decode(tokenizer.encode(_PROBE))
    if back == _PROBE:
        return True
    if _narrow(back) != _narrow(_PROBE):
        raise CheckpointError(
            f"{tokenizer.source}: does not give Chinese text back ('{_PROBE}' becomes '{back[:60]}'); give the tokenizer the model "
            "was trained with"
        )
    return False


def _narrow(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
