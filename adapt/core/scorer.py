"""The seam between labelling and models: readings in, log-probabilities by kind of token out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adapt.core.spans import Reading, Span

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoStepScores:
    """Coarse candidates' sums [G, kinds], which of the fine candidates were chosen then, and those ones' sums [F, kinds]."""

    coarse_G3: FloatArray
    chosen: list[int]
    fine_F3: FloatArray


class Scorer(Protocol):
    """Scores the candidates of an example: several readings that share most of their tokens."""

    @property
    def context_length(self) -> int:
        """The longest reading, in tokens, that the model can take."""
        ...

    def score(self, examples: Iterable[Sequence[Reading]], kinds: frozenset[Span]) -> Iterator[FloatArray]:
        """Yield, for each example in order, an array [candidates, kinds] of summed log-probabilities (<= 0).

        Only targets of the wanted kinds are summed; other columns are 0. A score depends only on its own reading: not on
        the other candidates and not on other examples; batch sizes change its rounding only (1e-7 in fp32).
        """
        ...

    def score_in_two_steps(
        self,
        examples: Iterable[tuple[Sequence[Reading], Sequence[Reading]]],
        kinds: frozenset[Span],
        choose: Callable[[int, FloatArray], Sequence[int]],
    ) -> Iterator[TwoStepScores]:
        """Score the coarse readings of an example, then only those fine ones that `choose` names by place (at least one).

        `choose` is given the example's number, from 0, and its coarse sums; examples may come to it out of order.
        """
        ...
