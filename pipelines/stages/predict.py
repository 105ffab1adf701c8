"""Stage `predict`: a file of rows in, the same rows with labels out, by an export.

`input` absent, a run labels the task's own test split (else dev), which shows that the export answers. Rows are read twice: all of
them are checked before the first is scored. They are answered in parts, so that memory does not grow with the file and a killed
run goes on behind its last part.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, writable, write_atomically
from adapt.core.errors import ConfigError, DataError
from adapt.core.faults import need_room
from adapt.core.progress import progress
from adapt.model.config import HFConfig
from adapt.text.rows.contract import Row, RowsFile
from adapt.text.rows.reading import ENDINGS, endings_of, header_of, open_rows, rows_of
from adapt.text.rows.writing import STANDARD, check_writable, write_rows
from pipelines.config.schema import PipelineConfig
from pipelines.stages.contract import Files, Reads, Stage, Workshop, unkeyed
from pipelines.stages.models import open_model_artifact
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads
from pseudo_label.predictor import PREDICTOR_FILE, Prediction, Predictor, load
from pseudo_label.tasks import TaskConfig, refuse_headless, row_from, split_path

NAME = "predict"
PREDICTIONS_FILE = "predictions.jsonl"
logger = logging.getLogger("pipelines")
_PART_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a first reading found: how many rows there are, and their columns in the order in which they first occur."""

    n_rows: int
    columns: list[str]


@dataclass(frozen=True, kw_only=True)
class PredictReads(Reads):
    """The rows to label, the export that labels them, and the columns that are `added`."""

    export: Artifact
    files: Files
    encoding: str | None
    added: list[str]
    scorer: ScorerReads
    base: Path | None = unkeyed("an export that is a delta names its base by content")
    source: RowsFile = unkeyed("files holds its content")
    output: str | None = unkeyed("where the answers are copied to")
    kept: ExitStack = unkeyed("rows that were read from a pipe, until this process ends")


class Predict(Stage[PredictReads]):
    """Label `input` with the export at `checkpoint`, or with the run's own export of the task."""

    name = NAME

    def reads(self, run: Run, task: TaskConfig | None) -> PredictReads:
        config = run.config
        if config.checkpoint is not None and "export" not in config.stages:
            export = open_model_artifact(Path(config.checkpoint))
        else:
            export = run.require("export", task)
        kept = ExitStack()
        source = source_of(run, task, kept)
        return PredictReads(
            export=export,
            files=Files({Path(source.name).name: source.path, **_answering(export)}),
            encoding=config.data.encoding,
            scorer=ScorerReads.of(run),
            base=Path(config.model.path) if isinstance(config.model, HFConfig) else None,
            source=source,
            added=added_columns(config),
            output=config.output,
            kept=kept,
        )

    def build(self, reads: PredictReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        predictor = load(reads.export.path, reads.scorer.scorer, reads.scorer.offload, reads.base)
        survey = survey_of(reads.source, predictor.spec.task, reads.added)
        parts = [work / f"part-{number:06d}.jsonl" for number in range(math.ceil(survey.n_rows / _PART_ROWS))]
        _answer(reads.source, predictor, survey, parts, reads.added)
        need_room(result, sum(part.stat().st_size for part in parts), "joining the answers")
        with writable(result), (result / PREDICTIONS_FILE).open("wb") as joined:
            for part in parts:
                joined.write(part.read_bytes())
        return {"rows": survey.n_rows, "input": reads.source.name, "columns": survey.columns}

    def describe(self, artifact: Artifact) -> str:
        return f"{artifact.metrics['rows']} rows of {artifact.metrics['input']}"

    def deliver(self, reads: PredictReads, artifact: Artifact, place: Path) -> None:
        reads.kept.close()
        if reads.output is not None:
            write_rows(reads.output, artifact.file(PREDICTIONS_FILE), [*artifact.metrics["columns"], *reads.added])
            logger.info("predict: written to %s", reads.output)


STAGE = Predict()


def source_of(run: Run, task: TaskConfig | None, kept: ExitStack) -> RowsFile:
    """Return the file to label: `input`, else the task's test split, else its dev. `kept` keeps what was read from a pipe.

    Raises:
        ConfigError: there is no task either, or what is to be written cannot be, or would replace the input.
        DataError: there is no such file.
    """
    output = run.config.output
    if output is not None:
        check_writable(output)  # before anything is scored
    source = _source(run, task, kept)
    if output is not None and _is_same(Path(output), source.path):
        raise ConfigError(f"{source.name}: is the input; give output= another name, so that your rows stay")
    return source


def is_piped(given: str | None) -> bool:
    """Say whether rows come from standard input or a pipe, which can be read once."""
    if given is None or given == STANDARD:
        return given is not None
    place = Path(given)
    return place.exists() and not place.is_file() and not place.is_dir()


def added_columns(config: PipelineConfig) -> list[str]:
    """Return the names of the columns that are added."""
    return [f"{config.predict.prefix}prediction", f"{config.predict.prefix}probability"]


def survey_of(source: RowsFile, task: TaskConfig, added: list[str]) -> Survey:
    """Read all rows once.

    Raises:
        DataError: a row is malformed, lacks a field, or has a column of a name that is added.
    """
    columns = dict.fromkeys(header_of(source) or [])
    n_rows = 0
    for row in rows_of(source):
        row_from(row.record, task, source.name, row.number, row.unit, reads_label=False)
        columns.update(dict.fromkeys(row.record))
        n_rows += 1
    taken = next((name for name in added if name in columns), None)
    if taken is not None:
        raise DataError(
            f"{source.name}: has a column '{taken}', which predict adds; set predict.prefix=model_ (say) to call its own "
            f"'model_prediction' and 'model_probability'"
        )
    if not n_rows and source.kind.is_table:
        if not columns:
            raise DataError(f"{source.name}: is empty: no header line and no rows; a table without rows has its header")
        refuse_headless(list(columns), task, source.name)
    return Survey(n_rows=n_rows, columns=list(columns))


def _answer(source: RowsFile, predictor: Predictor, survey: Survey, parts: list[Path], added: list[str]) -> None:
    """Write the answers part by part, but for those that are there."""
    rows = rows_of(source)
    for part in progress(parts, f"predicting {survey.n_rows:,} rows", total=len(parts), unit="part"):
        some = list(islice(rows, _PART_ROWS))
        if part.is_file():
            continue
        answers = predictor.predict_rows([predictor.read(row.record, source.name, row.number, row.unit) for row in some])
        with writable(part.parent):
            write_atomically(part, "".join(_lines(some, answers, source, added)))


def _lines(rows: list[Row], answers: list[Prediction], source: RowsFile, added: list[str]) -> Iterator[str]:
    for row, answer in zip(rows, answers, strict=True):
        mine = dict(zip(added, (answer.label, round(answer.probabilities[answer.label], 6)), strict=True))
        try:
            yield json.dumps({**_plain(row.record), **mine}, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise DataError(
                f"{source.name}, {row.place}: has an infinite number, which JSON has no word for; take it out"
            ) from error


def _plain(value: Any) -> Any:
    """Return a value with null for NaN, which is how tables say that nothing is there."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _source(run: Run, task: TaskConfig | None, kept: ExitStack) -> RowsFile:
    """Return the file of rows to label; what comes from a pipe is put into a file first.

    Raises:
        DataError: there is none.
    """
    encoding = run.config.data.encoding
    if run.config.input is not None:
        given = Path(run.config.input)
        if is_piped(run.config.input):
            return _spooled(run, kept)
        if not given.is_file():
            raise DataError(f"{given}: no such file; give input=FILE.jsonl, FILE.csv or another kind of rows")
        return open_rows(given, encoding=encoding)
    if task is None:
        raise ConfigError("no input given; set input=FILE.jsonl, FILE.csv or another kind of rows, or - for standard input")
    for split in ("test", "dev"):
        path = split_path(run.data_root(), task, split)
        if path.is_file():
            return open_rows(path, encoding=task.encoding)
    raise DataError(f"{split_path(run.data_root(), task, 'test')}: no such file; give input=FILE.jsonl")


def _answering(export: Artifact) -> dict[str, Path]:
    """Return the file that says how an export answers, which a bare checkpoint's digest does not cover."""
    file = export.path / PREDICTOR_FILE
    return {f"export/{PREDICTOR_FILE}": file} if file.is_file() else {}


def _spooled(run: Run, kept: ExitStack) -> RowsFile:
    """Copy standard input or a pipe into a file of the store that goes away with this process."""
    given = str(run.config.input)
    ending = endings_of(given) or next(iter(ENDINGS))
    with writable(run.store.root):
        run.store.root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.NamedTemporaryFile(dir=run.store.root, prefix=".input-", suffix=ending)  # noqa: SIM115 (the stack closes it)
        copy = kept.enter_context(scratch)
        with Path("/dev/stdin" if given == STANDARD else given).open("rb") as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
    name = "standard input" if given == STANDARD else given
    return open_rows(Path(copy.name), encoding=run.config.data.encoding, name=name)


def _is_same(output: Path, source: Path) -> bool:
    return output.resolve() == source.resolve() or (output.exists() and output.samefile(source))
