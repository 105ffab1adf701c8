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
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.artifacts import Artifact, write_atomically
from adapt.core.errors import ConfigError, DataError, counted
from adapt.core.faults import need_room, writable
from adapt.core.json_files import json_text, read_object
from adapt.core.progress import progress
from adapt.core.runtime import ONCE, generator_for
from adapt.core.store_locks import locked
from adapt.model.config import HFConfig
from adapt.text.rows.contract import Kind, Quotes, Row, RowsFile
from adapt.text.rows.directories import files_of, is_rows
from adapt.text.rows.reading import ENDINGS, endings_of, header_of, open_rows, rows_of
from adapt.text.rows.writing import STANDARD, check_writable, kind_of_output, without_nan, write_rows
from pipelines.config.schema import PipelineConfig
from pipelines.stages.contract import Files, Reads, Stage, Workshop, unkeyed
from pipelines.stages.models import open_model_artifact
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads
from pipelines.stages.up_to_date import older_export
from pseudo_label.cut_rows import counts_of_cut, said_of_cut
from pseudo_label.predictor import PREDICTOR_FILE, Prediction, Predictor, load, read_spec
from pseudo_label.tasks import TaskConfig, has_id, refuse_headless, row_from, split_path

NAME = "predict"
PREDICTIONS_FILE = "predictions.jsonl"
logger = logging.getLogger("pipelines")
_PART_ROWS = 512
_SAMPLED, _LOOKED_AT = 2_000, 100  # texts, and characters of each, that the tokenizer is tried on


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a first reading found: how many rows there are, and their columns in the order in which they first occur.

    `repeated` rows have the id of an earlier one, the first of them at line `repeated_line`; `blank` rows have no text in any
    field, the first of them at line `blank_line`; `sample` are beginnings of some texts.
    """

    n_rows: int
    columns: list[str]
    repeated: int = 0
    repeated_line: int = 0
    blank: int = 0
    blank_line: int = 0
    sample: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PredictReads(Reads):
    """The rows to label, the export that labels them, and the columns that are `added`."""

    export: Artifact
    files: Files
    encoding: str | None
    quotes: Quotes | None
    added: list[str]
    scorer: ScorerReads
    base: Path | None = unkeyed("an export that is a delta names its base by content")
    source: RowsFile = unkeyed("files holds its content")
    output: str | None = unkeyed("where the answers are copied to")
    kept: ExitStack = unkeyed("rows that were read from a pipe, until this process ends")


class Predict(Stage[PredictReads]):
    """Label `input` with the export at `checkpoint`, or with the run's own export of the task."""

    name = NAME
    version = 3  # an empty id is none; times of day keep their nanoseconds; a file that changes while it is read is refused

    def reads(self, run: Run, task: TaskConfig | None) -> PredictReads:
        config = run.config
        if config.checkpoint is not None and "export" not in config.stages:
            export = open_model_artifact(Path(config.checkpoint))
            if config.tasks and (own := read_spec(export.path).task.name) not in config.tasks:
                named = ", ".join(config.tasks)
                raise ConfigError(f"checkpoint: {config.checkpoint} is an export of task '{own}', not of {named}; leave task= out")
        else:
            export = run.require("export", task)
            if task is not None and (older := older_export(run, task.name)):
                run.workshop.say_once(older)
        kept = ExitStack()
        source = source_of(run, task, kept)
        return PredictReads(
            export=export,
            files=Files({**_named(source), **_answering(export)}),
            encoding=source.encoding,
            quotes=source.quotes,
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
        for finding in predictor.text_findings(reads.source.name, survey.sample):
            logger.info("%s: %s", finding.level.value, finding, extra=ONCE)
        parts = [work / f"part-{number:06d}.jsonl" for number in range(math.ceil(survey.n_rows / _PART_ROWS))]
        _answer(reads, predictor, survey, parts)
        need_room(result, sum(part.stat().st_size for part in parts), "joining the answers")
        with writable(result), (result / PREDICTIONS_FILE).open("wb") as joined:
            for part in parts:
                joined.write(part.read_bytes())
        cut = counts_of_cut(read_object(part.with_suffix(".cut")) for part in parts if part.with_suffix(".cut").is_file())
        return {
            "rows": survey.n_rows,
            "input": reads.source.name,
            "columns": survey.columns,
            "repeated": survey.repeated,
            "repeated_line": survey.repeated_line,
            "blank": survey.blank,
            "blank_line": survey.blank_line,
            "unit": "rows" if reads.source.kind.is_table and not reads.source.kind.is_text else "lines",
            **cut,
        }

    def describe(self, artifact: Artifact) -> str:
        return f"{counted(artifact.metrics['rows'], 'row')} of {artifact.metrics['input']}"

    def deliver(self, reads: PredictReads, artifact: Artifact, place: Path) -> None:
        reads.kept.close()
        found, name = artifact.metrics, artifact.metrics["input"]
        if (cut := said_of_cut(found, found["rows"], found.get("unit", "lines"))) is not None:
            logger.info("%s: %s", name, cut)
        for what, says in (("repeated", "have the id of an earlier row"), ("blank", "have no text, and are labelled all the same")):
            if found.get(what):
                where = f"{found['unit'].removesuffix('s')} {found[f'{what}_line']:,}"
                logger.info("%s: %s rows %s (the first at %s)", name, f"{found[what]:,}", says, where)
        if reads.output is not None:
            quotes = reads.quotes if reads.source.kind is kind_of_output(reads.output) else None
            columns = [*artifact.metrics["columns"], *reads.added]
            write_rows(reads.output, artifact.file(PREDICTIONS_FILE), columns, quotes)
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
    n_rows = blank = blank_line = 0
    ids, lines = array("q"), array("q")  # some bytes a row, whatever is in them
    random, sample = generator_for("texts of an input"), list[str]()
    for row in rows_of(source):
        read = row_from(row.record, task, source.name, row.number, row.unit, reads_label=False)
        if source.kind not in (Kind.CSV, Kind.TSV) and _is_infinite(row.record):
            raise DataError(f"{source.name}, {row.place}: has an infinite number, which JSON has no word for; take it out")
        columns.update(dict.fromkeys(row.record))
        n_rows += 1
        if not any(text.strip() for text in read.texts.values()):
            blank, blank_line = blank + 1, blank_line or row.number
        if has_id(row.record, task):
            ids.append(hash(str(read.id)))
            lines.append(row.number)
        place = len(sample) if len(sample) < _SAMPLED else int(random.integers(n_rows))
        sample[place : place + 1] = ["\n".join(read.texts.values())[:_LOOKED_AT]] if place < _SAMPLED else []
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
    repeats = repeated_places(ids)
    first = lines[int(repeats[0])] if len(repeats) else 0
    return Survey(
        n_rows=n_rows,
        columns=list(columns),
        repeated=len(repeats),
        repeated_line=first,
        blank=blank,
        blank_line=blank_line,
        sample=sample,
    )


def repeated_places(values: array[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the places of values that stood before, in ascending order."""
    found = np.frombuffer(values, np.int64) if values else np.empty(0, np.int64)
    in_order = np.sort(found)
    if not (in_order[1:] == in_order[:-1]).any():  # as nearly always: places take several times the memory
        return np.empty(0, np.int64)
    _, first = np.unique(found, return_index=True)
    is_repeat = np.ones(len(found), bool)
    is_repeat[first] = False
    return np.flatnonzero(is_repeat)


def _answer(reads: PredictReads, predictor: Predictor, survey: Survey, parts: list[Path]) -> None:
    """Write the answers part by part, but for those that are there.

    A part is kept only while the rows are those that the key counts: after a kill, a run of the same key goes on from it.
    """
    source = reads.source
    rows = rows_of(source)
    for part in progress(parts, f"predicting {counted(survey.n_rows, 'row')}", total=len(parts), unit="part"):
        some = list(islice(rows, _PART_ROWS))
        if part.is_file():
            continue
        read = [predictor.read(row.record, source.name, row.number, row.unit) for row in some]
        answers, cut = predictor.predict_rows(read), predictor.cut_rows(read)
        reads.files.refuse_changed()
        with writable(part.parent):
            if cut is not None and cut.lines:
                write_atomically(part.with_suffix(".cut"), json_text(cut))
            write_atomically(part, "".join(_lines(some, answers, reads.added)))


def _is_infinite(value: Any) -> bool:
    """Say whether an infinite number is in a value."""
    if isinstance(value, Mapping):
        return any(map(_is_infinite, value.values()))
    if isinstance(value, list):
        return any(map(_is_infinite, value))
    return isinstance(value, float) and math.isinf(value)


def _lines(rows: list[Row], answers: list[Prediction], added: list[str]) -> Iterator[str]:
    for row, answer in zip(rows, answers, strict=True):
        mine = dict(zip(added, (answer.label, round(answer.probabilities[answer.label], 6)), strict=True))
        yield json.dumps({**without_nan(row.record), **mine}, ensure_ascii=False, allow_nan=False) + "\n"


def _source(run: Run, task: TaskConfig | None, kept: ExitStack) -> RowsFile:
    """Return the file of rows to label; what comes from a pipe is put into a file first.

    Raises:
        DataError: there is none.
    """
    data = run.config.data
    if run.config.input is not None:
        given = Path(run.config.input)
        if is_piped(run.config.input):
            return _spooled(run, kept)
        if not given.is_file() and not given.is_dir():
            raise DataError(f"{given}: no such file; give input=FILE.jsonl, FILE.csv or another kind of rows")
        return open_rows(given, encoding=data.encoding, quotes=data.quotes)
    if task is None:
        raise ConfigError("no input given; set input=FILE.jsonl, FILE.csv or another kind of rows, or - for standard input")
    for split in ("test", "dev"):
        path = split_path(run.splits(), task, split)
        if is_rows(path):
            return open_rows(path, encoding=task.encoding, quotes=task.quotes)
    raise DataError(f"{split_path(run.splits(), task, 'test')}: no such file; give input=FILE.jsonl")


def _named(source: RowsFile) -> dict[str, Path]:
    """Return the files that hold the rows, by the name under which the key counts them."""
    return {f"{Path(source.name).name}{part}": file for part, file in files_of(source.path).items()}


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
        kept.enter_context(locked(Path(copy.name)))  # so that `clean` leaves it
        with Path("/dev/stdin" if given == STANDARD else given).open("rb") as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
    name = "standard input" if given == STANDARD else given
    return open_rows(Path(copy.name), encoding=run.config.data.encoding, quotes=run.config.data.quotes, name=name)


def _is_same(output: Path, source: Path) -> bool:
    return output.resolve() == source.resolve() or (output.exists() and output.samefile(source))
