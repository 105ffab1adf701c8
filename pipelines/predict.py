"""Stage `predict`: any jsonl or csv in, labels out, by an export.

`input` absent, a run labels the task's own test split (else dev), which shows that the export answers.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, StageKey, sha256_of_file, writable, write_atomically
from adapt.core.errors import ConfigError, DataError
from adapt.text.corpus import parse_json_line, read_lines
from pipelines.stage import Plan, Walk, open_model_artifact, plain_settings
from pseudo_label.predictor import PREDICTOR_FILE, Prediction, load
from pseudo_label.tasks import TaskConfig, split_path

NAME = "predict"
VERSION = 1
PER_TASK = True
PREDICTIONS_FILE = "predictions.jsonl"
logger = logging.getLogger("pipelines")
_CSV_ENDINGS = (".csv", ".tsv")


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Label `input` with the export at `checkpoint`, or with the run's own export of the task."""
    config = walk.config
    if config.checkpoint is not None and "export" not in config.stages:
        export = open_model_artifact(Path(config.checkpoint))
    else:
        export = walk.require("export", task)
    source = source_of(walk, task)
    key = StageKey(
        stage=NAME,
        version=VERSION,
        config=plain_settings(precision=config.scorer.precision),
        inputs={"export": export},
        files={source.name: sha256_of_file(source), **_answering(export)},
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        predictor = load(export.path, config.scorer, config.offload)
        records = read_records(source)
        answers = predictor.predict_rows([predictor.read(record, str(source), line) for line, record in records])
        text = "".join(_line(record, answer) for (_, record), answer in zip(records, answers, strict=True))
        write_atomically(result / PREDICTIONS_FILE, text)
        return {"rows": len(records), "input": str(source)}

    def describe(artifact: Artifact) -> str:
        return f"{artifact.metrics['rows']} rows of {artifact.metrics['input']}"

    def deliver(artifact: Artifact) -> None:
        if config.output is not None:
            place = Path(config.output)
            with writable(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(place, artifact.file(PREDICTIONS_FILE).read_text(encoding="utf-8"))
            logger.info("predict: written to %s", place)

    return Plan(key=key, build=build, describe=describe, deliver=deliver)


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read JSON lines, or a csv/tsv file with a header line, as (line number, record).

    Raises:
        DataError: a line is malformed, by file and line, or there are none.
    """
    records = list(_table_records(path) if path.suffix in _CSV_ENDINGS else _json_records(path))
    if not records:
        raise DataError(f"{path}: has no rows to predict")
    return records


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_json_line(line, path, number)


def _table_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [line for _, line in read_lines(path)]
    reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    for record in reader:
        if None in record or None in record.values():
            raise DataError(f"{path}, line {reader.line_num}: has not as many columns as the header")
        yield reader.line_num, dict(record)


def source_of(walk: Walk, task: TaskConfig | None) -> Path:
    """Return the file to label: `input`, else the task's test split, else its dev.

    Raises:
        ConfigError: there is no task either, or what is written would replace it.
        DataError: there is no such file.
    """
    source, output = _source(walk, task), walk.config.output
    if output is not None and Path(output).resolve() == source.resolve():
        raise ConfigError(f"{source}: is the input; give output= another name, so that your rows stay")
    return source


def _source(walk: Walk, task: TaskConfig | None) -> Path:
    if walk.config.input is not None:
        source = Path(walk.config.input)
        if not source.is_file():
            raise DataError(f"{source}: no such file; give input=FILE.jsonl or FILE.csv")
        return source
    if task is None:
        raise ConfigError("no input given; set input=FILE.jsonl or FILE.csv")
    for split in ("test", "dev"):
        path = split_path(walk.data_root(), task, split)
        if path.is_file():
            return path
    raise DataError(f"{split_path(walk.data_root(), task, 'test')}: no such file; give input=FILE.jsonl")


def _answering(export: Artifact) -> dict[str, str]:
    """Return the sha256 of what says how an export answers, which a bare checkpoint's digest does not cover."""
    file = export.path / PREDICTOR_FILE
    return {f"export/{PREDICTOR_FILE}": sha256_of_file(file)} if file.is_file() else {}


def _line(record: Mapping[str, Any], answer: Prediction) -> str:
    probability = answer.probabilities[answer.label]
    return json.dumps({**record, "prediction": answer.label, "probability": round(probability, 6)}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from pipelines.compose import main

    main(NAME)
