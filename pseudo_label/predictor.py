"""Exports answer as evaluation did: `pseudo_label.load(directory).predict(rows)`.

Exports that are deltas on one base take turns in one predictor (`switch_to`): the base is read once.

This is where the library is put together, and the only file of this package that reaches for a model's checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.checkpoint.offload import OffloadConfig, Verify
from adapt.core.artifacts import open_artifact, refuse_dangling
from adapt.core.errors import CheckpointError, DataError
from adapt.core.json_files import read_object, write_json
from adapt.core.precision import say_precision
from adapt.core.store_places import is_artifact
from adapt.core.typed import from_plain
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.tokenizer_health import Finding, byte_findings, health_of
from pseudo_label.cut_rows import CutRows
from pseudo_label.decision import Decision, softmax
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of, row_from
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.lexical_files import Lexical

if TYPE_CHECKING:
    from adapt.checkpoint.open_checkpoint import OpenCheckpoint

PREDICTOR_FILE = "predictor.json"


@dataclass(frozen=True, kw_only=True)
class PredictorSpec:
    """What an export says about answering: the task, how rows are scored, and the frozen decision.

    Where the decision asks the lexical labeller, its files lie beside this one.
    """

    task: TaskConfig
    scoring: ScoringConfig
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one row: its label, and a probability for every label by the decision's scores.

    `is_cut` says that the row was longer than the model's context, and that the model read a part of it.
    """

    label: str
    probabilities: dict[str, float]
    is_cut: bool = False


class Predictor:
    """An export, loaded. `opened` is its checkpoint, where its decision asks a model."""

    def __init__(self, spec: PredictorSpec, opened: OpenCheckpoint | None, lexical: Lexical | None, verify: Verify) -> None:
        self._verify = verify
        self._answer_by(spec, opened, lexical)

    def _answer_by(self, spec: PredictorSpec, opened: OpenCheckpoint | None, lexical: Lexical | None) -> None:
        self.spec = spec
        self._opened = opened
        self._lexical = lexical
        self._scorer = None if opened is None else TaskScorer(spec.task, spec.scoring, opened.scorer, opened.tokenizer)

    def switch_to(self, directory: str | Path) -> None:
        """Answer by another export from now on: another delta on the base that is in memory, which is not read again.

        Raises:
            CheckpointError: this or the other export is no delta, or they have different bases; this one then goes on.
        """
        place = Path(directory)
        spec, lexical = _read(place)
        if self._opened is None:
            raise CheckpointError(f"{place}: cannot take the place of an export that asks no model; load it by itself")
        self._answer_by(spec, self._opened.switched_to(place, self._verify), lexical)

    def predict(self, rows: Iterable[Mapping[str, Any]]) -> list[Prediction]:
        """Label rows that have the task's fields (a `label` in them is ignored).

        Raises:
            DataError: a row lacks a field.
        """
        return self.predict_rows([self.read(row, "rows", i) for i, row in enumerate(rows, start=1)])

    def read(self, record: Mapping[str, Any], where: str, line: int, unit: str = "line") -> TaskRow:
        """Turn a mapping into a row of the task; `where`, `unit` and `line` name it in errors.

        Raises:
            DataError: it is no mapping, or lacks a field.
        """
        task = self.spec.task
        if not isinstance(record, Mapping):
            raise DataError(f"{where}, {unit} {line}: expected a mapping with {', '.join(task.fields)}, found {record!r}")
        return row_from(record, task, where, line, unit, reads_label=False)

    def predict_rows(self, rows: Sequence[TaskRow]) -> list[Prediction]:
        """Label rows that were read already."""
        if not rows:
            return []
        task = self.spec.task
        lexical_NC = None if self._lexical is None else self._lexical.scores(rows)
        if self._scorer is None:
            scores_NC = self.spec.decision.scores([], task, lexical_NC)
        else:
            scores_NC = self._scorer.scores(rows, self.spec.decision, lexical_NC)
        names = [labels_of(row, task) for row in rows]
        cut = self.cut_rows([replace(row, line=place) for place, row in enumerate(rows)])
        places = set() if cut is None else set(cut.lines)
        return [
            Prediction(label=label, probabilities=dict(zip(ns, probs[: len(ns)].tolist(), strict=True)), is_cut=place in places)
            for place, (label, ns, probs) in enumerate(
                zip(predictions(scores_NC, rows, task), names, softmax(scores_NC), strict=True)
            )
        ]

    def cut_rows(self, rows: Sequence[TaskRow]) -> CutRows | None:
        """Return which rows are cut to the model's context under the first prompt that answers; None where no model does."""
        return None if self._scorer is None else self._scorer.cut_rows(rows, self.spec.decision.prompts[0])

    def text_findings(self, name: str, texts: Sequence[str]) -> list[Finding]:
        """Return what the model's tokenizer hardly knows of texts (`name` is what messages call them); nothing without a model."""
        if self._scorer is None or not texts:
            return []
        return byte_findings(health_of(self._scorer.tokenizer, name, texts, with_losses=False))


def save_spec(directory: Path, spec: PredictorSpec) -> None:
    """Write what `load` needs beside a checkpoint's files."""
    write_json(directory / PREDICTOR_FILE, spec)


def read_spec(directory: Path) -> PredictorSpec:
    """Read what an export says about answering.

    Raises:
        CheckpointError: it is not an export, or it is damaged.
    """
    place = directory / PREDICTOR_FILE
    refuse_dangling(directory, "run stage export again")
    if not place.is_file():
        raise CheckpointError(f"{directory}: is not an export (no {PREDICTOR_FILE}); make one with `pipelines.export`")
    spec: PredictorSpec = from_plain(PredictorSpec, read_object(place), str(place))
    return spec


def load(
    directory: str | Path,
    scorer: ScorerConfig | None = None,
    offload: OffloadConfig | None = None,
    base: str | Path | None = None,
) -> Predictor:
    """Load an export. `scorer.precision` is `auto` unless set: bf16 where this machine multiplies in it, else fp32.

    `base` is the directory of the base that an export in the form of a delta belongs to, if it is no longer where it was.

    Raises:
        CheckpointError: it is not an export, it is damaged, or its base is another one.
    """
    place, offload = Path(directory), offload or OffloadConfig()
    spec, lexical = _read(place)
    if not spec.decision.method.needs_model:
        return Predictor(spec, None, lexical, offload.verify)
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # imports torch

    scorer = scorer or ScorerConfig()
    say_precision(scorer.auto_precision())
    opened = open_checkpoint(place, scorer.resolved(), offload, None if base is None else Path(base))
    return Predictor(spec, opened, lexical, offload.verify)


def _read(place: Path) -> tuple[PredictorSpec, Lexical | None]:
    """Read how an export answers, and its lexical labeller where it asks one; an artifact's files are compared with their sums."""
    if is_artifact(place):
        open_artifact(place.resolve())
    spec = read_spec(place)
    return spec, lexical_files.load(place, spec.task, may_be_unnamed=True) if spec.decision.needs_lexical else None
