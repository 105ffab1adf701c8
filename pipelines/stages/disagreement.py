"""What pages show of a task's pseudo-labels: where its teachers disagree, and how right labels of a confidence are.

Scores of the fitted teachers flow in, and which labelled rows they get right; small tables flow out, as `figures.json` beside the
labels, which is no part of the artifact's digest: only pages show them. Texts stay where they are: a row is named by its line and
digest.

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapt.core.json_files import read_json, write_json
from adapt.core.scorer import FloatArray
from adapt.core.typed import from_plain
from pseudo_label.decision import softmax
from pseudo_label.labelling import predictions
from pseudo_label.store import reading_digest
from pseudo_label.tasks import TaskConfig, TaskRow

TOGETHER = "together"
_MOST_ROWS = 15
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class DisputedRow:
    """A row to which teachers give several labels: by teacher its label, and the largest probability of its own scores."""

    line: int
    text_digest: str
    labels: dict[str, str]
    confidences: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TeacherViews:
    """What teachers say of `n` unlabeled rows; `together` is the name of their sum.

    `agreement` is by two names the share of rows that get the same label, `counts` by name and label the number of rows.
    `n_disputed` rows get several labels, of which `disputed` are those where the least sure teacher is surest.
    """

    n: int
    agreement: dict[str, dict[str, float]]
    counts: dict[str, dict[str, int]]
    n_disputed: int
    disputed: list[DisputedRow]

    @classmethod
    def of(
        cls, rows: Sequence[TaskRow], task: TaskConfig, scores: Mapping[str, FloatArray], together_NC: FloatArray
    ) -> TeacherViews:
        """Compare the scores [N, C] of several teachers, and their sum."""
        given = {name: predictions(found, rows, task) for name, found in {**scores, TOGETHER: together_NC}.items()}
        sure = {name: softmax(found).max(axis=1) for name, found in scores.items()}
        differ = np.asarray([len({given[name][i] for name in scores}) > 1 for i in range(len(rows))], dtype=bool)
        least_N = np.min(list(sure.values()), axis=0)
        order = sorted(np.flatnonzero(differ).tolist(), key=lambda i: (-least_N[i], i))
        return cls(
            n=len(rows),
            agreement={one: {other: _share(given[one], given[other]) for other in given} for one in given},
            counts={name: dict(Counter(labels).most_common()) for name, labels in given.items()},
            n_disputed=len(order),
            disputed=[
                DisputedRow(
                    line=rows[i].line,
                    text_digest=reading_digest(rows[i]),
                    labels={name: given[name][i] for name in given},
                    confidences={name: round(float(sure[name][i]), 4) for name in scores},
                )
                for i in order[:_MOST_ROWS]
            ],
        )


@dataclass(frozen=True, kw_only=True)
class NoiseBin:
    """The labelled rows whose pseudo-label has a probability from `low` on: how many, its mean, and the share that is right."""

    low: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class LabelFigures:
    """What pages show of pseudo-labels: views of several teachers, and how right labels of a confidence are on labelled rows."""

    views: TeacherViews | None = None
    noise: list[NoiseBin] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> LabelFigures:
        """Read what `write` wrote. Raises CheckpointError or ConfigError where it is damaged."""
        return from_plain(cls, read_json(file), str(file))

    def write(self, file: Path) -> None:
        """Write a file of a directory that is still being built."""
        write_json(file, self)


def noise_bins(confidences: Sequence[float], is_right: Sequence[bool]) -> list[NoiseBin]:
    """Sort labelled rows into tenths of the probability of their pseudo-label; tenths without a row are left out."""
    sure_N, right_N = np.asarray(confidences, dtype=np.float64), np.asarray(is_right, dtype=np.float64)
    bin_N = np.minimum((sure_N * _BINS).astype(np.int64), _BINS - 1)
    return [
        NoiseBin(
            low=place / _BINS,
            n=int((bin_N == place).sum()),
            confidence=float(sure_N[bin_N == place].mean()),
            accuracy=float(right_N[bin_N == place].mean()),
        )
        for place in sorted(set(bin_N.tolist()))
    ]


def _share(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / max(len(one), 1)
