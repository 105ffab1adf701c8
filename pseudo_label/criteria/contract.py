"""Ranking criteria: the scores of a row's candidates to one key per candidate, larger is better.

Legend: C candidates; the second axis of C3 arrays is the kind of token (`Span`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapt.core.registry import Registry, import_folder
from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray, LabelForm, Span


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateScores:
    """What one pass gives for a row: summed log-probabilities and target counts by kind, and the words' characters."""

    sums_C3: FloatArray
    tokens_C3: IntArray
    characters_C: IntArray

    def only(self, places: Sequence[int]) -> CandidateScores:
        """Return the scores of the candidates at some places."""
        at = list(places)
        return CandidateScores(sums_C3=self.sums_C3[at], tokens_C3=self.tokens_C3[at], characters_C=self.characters_C[at])

    @classmethod
    def joined(cls, several: Sequence[CandidateScores]) -> CandidateScores:
        """Put the candidates of several one behind the other."""
        return cls(
            sums_C3=np.concatenate([scores.sums_C3 for scores in several]),
            tokens_C3=np.concatenate([scores.tokens_C3 for scores in several]),
            characters_C=np.concatenate([scores.characters_C for scores in several]),
        )

    @classmethod
    def mean_of(cls, several: Sequence[CandidateScores]) -> CandidateScores:
        """Return the mean sums of the same candidates in several contexts; counts are those in the first."""
        first = several[0]
        sums_C3 = np.mean([scores.sums_C3 for scores in several], axis=0)
        return cls(sums_C3=sums_C3, tokens_C3=first.tokens_C3, characters_C=first.characters_C)


class Null(enum.Enum):
    """What is subtracted from a candidate's score: nothing, the prompt with every field empty, or other texts of the domain."""

    NONE = "none"
    EMPTY = "empty"
    DOMAIN = "domain"


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A way to rank. `kinds` are the tokens it needs scored; `null` says under which null context they are scored too.

    `form`, where given, is the only form of the label it is scored in, whatever the stage says: a criterion that scores other
    tokens given the label never masks it.

    `key(scores, null)` gives one key per candidate; its `null` are the scores under the null context, or None.
    """

    name: str
    kinds: frozenset[Span]
    key: Callable[[CandidateScores, CandidateScores | None], FloatArray]
    null: Null = Null.NONE
    form: LabelForm | None = None

    @property
    def needs_null(self) -> bool:
        return self.null is not Null.NONE


CRITERIA: Registry[Criterion] = Registry("criterion")


def register(criterion: Criterion) -> Criterion:
    """Register a criterion under its own name."""
    return CRITERIA.register(criterion.name)(criterion)


def get_criterion(name: str) -> Criterion:
    """Return a criterion by name. Raises ConfigError with a suggestion for an unknown one."""
    import_folder(__package__, [str(Path(__file__).parent)])
    return CRITERIA.get(name)
