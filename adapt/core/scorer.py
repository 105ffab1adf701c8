"""The seam between labelling and models: readings in, log-probabilities by kind of token out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adapt.core.spans import Reading, Span

FloatArray = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Scores the candidates of an example: several readings that share most of their tokens."""

    @property
    def context_length(self) -> int:
        """The longest reading, in tokens, that the model can take."""
        ...

    def score(self, examples: Iterable[Sequence[Reading]], kinds: frozenset[Span]) -> Iterator[FloatArray]:
        """Yield, for each example in order, an array [candidates, kinds] of summed log-probabilities (<= 0).

        Only targets of the wanted kinds are summed; other columns are 0. A score depends on its own reading alone: not on
        the other candidates, on other examples or on batch sizes.
        """
        ...
