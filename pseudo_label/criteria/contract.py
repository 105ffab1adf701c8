"""Ranking criteria: the scores of a row's candidates to one key per candidate, larger is better.

Legend: C candidates; the second axis of C3 arrays is the kind of token (`Span`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A way to rank. `kinds` are the tokens it needs scored; `needs_null` asks for the scores under the null context too.

    `form`, where given, is the only form of the label it is scored in, whatever the stage says: a criterion that scores other
    tokens given the label never masks it.

    `key(scores, null)` gives one key per candidate; `null` is None unless asked for.
    """

    name: str
    kinds: frozenset[Span]
    key: Callable[[CandidateScores, CandidateScores | None], FloatArray]
    needs_null: bool = False
    form: LabelForm | None = None


CRITERIA: Registry[Criterion] = Registry("criterion")


def register(criterion: Criterion) -> Criterion:
    """Register a criterion under its own name."""
    return CRITERIA.register(criterion.name)(criterion)


def get_criterion(name: str) -> Criterion:
    """Return a criterion by name. Raises ConfigError with a suggestion for an unknown one."""
    import_folder(__package__, [str(Path(__file__).parent)])
    return CRITERIA.get(name)
