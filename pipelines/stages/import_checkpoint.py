"""Stage `import_checkpoint`: a foreign checkpoint to an artifact that every stage takes as `checkpoint=`.

`importer` says which program wrote it, `source` is its directory. Names and shapes are accounted for before anything is written;
weights go through memory one parameter at a time. On this command line `tokenizer=FILE` is short for
`import_checkpoint.tokenizer=FILE` (everywhere else `tokenizer` is the section of the tokenizer that a run trains).
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import artifact_of_files
from adapt.checkpoint.vocabulary import check_vocabulary, open_tokenizer
from adapt.core.artifacts import Artifact, StageKey, writable
from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from adapt.core.typed import to_plain
from adapt.text.contract import TextTokenizer
from pipelines.stages.contract import Plan, Walk, plain_settings
from pseudo_label.tasks import TaskConfig

NAME = "import_checkpoint"
VERSION = 1
PER_TASK = False
_PROBE = "今天天气很好，我们一起去公园散步。这句话表达的是满意还是不满意？"


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Import `source`, written by `importer`, with the tokenizer that was given, if any."""
    from adapt.checkpoint.importers.contract import all_importers  # imports torch

    config = walk.config
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
    key = StageKey(
        stage=NAME,
        version=VERSION,
        config={"importer": config.importer, **plain_settings(residual_axis=settings.residual_axis, model=foreign.config)},
        inputs={"source": artifact_of_files(source.resolve(), f"source of {config.importer}", foreign.files, {})},
        files={} if tokenizer is None else {"tokenizer": tokenizer.digest},
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.weights import save_model

        try:
            with writable(result):
                save_model(result, foreign.config, foreign.tensors(), tokenizer)
        except AdaptError:
            for place in (result, work):
                shutil.rmtree(place, ignore_errors=True)
            raise
        text = "none" if tokenizer is None else {"source": tokenizer.source, "keeps_text_exactly": keeps_text}
        return {"report": to_plain(foreign.report), "tokenizer": text, "files": len(foreign.files)}

    return Plan(key=key, build=build, describe=_describe)


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


def _describe(artifact: Artifact) -> str:
    report = artifact.metrics["report"]
    unused = sum(report["unused"].values())
    tokenizer = "no tokenizer" if artifact.metrics["tokenizer"] == "none" else "with its tokenizer"
    return (
        f"{report['read']} tensors read from {artifact.metrics['files']} files, {report['mapped']} mapped, "
        f"{unused} known to be unused, {report['missing']} missing, {report['left_over']} left over; {tokenizer}"
    )
