"""Weights on the line between a base and what training made of it, as far from the base as general text allows.

What an adaptation costs in general text grows about with the square of the change, what it gains on its task sooner: so a part
of the change has most of the gain (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903, section 3).
The share is searched by measuring, so that the bound holds for the weights that are written.

Where LoRA's factors are trained, only B is scaled: the change of a matrix is a multiple of B A.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from torch import Tensor

_ENOUGH_TRIALS, _MOST_TRIALS = 5, 7  # where a share that does is known, and where none is
_LEAST_POWER, _LARGEST_POWER = 0.5, 2.0  # of the share, with which the increase grows
_NEAR_ENOUGH = 0.04  # between the largest share that is known to do and the smallest that is known not to
_EDGE = 0.15  # of a bracket: a trial nearer to an end would say little
_LORA_B = ".lora_B."

logger = logging.getLogger(__name__)


class Shrinkable(Protocol):
    """Trained weights that can be set by name: an engine's."""

    def set_weights(self, weights: Mapping[str, Tensor]) -> None: ...


def largest_share(increase_at: Callable[[float], float], whole: float, limit: float) -> float:
    """Return the largest share of a change, of those tried, whose increase stays within `limit`; 0 if none does.

    `whole` is the increase of all of the change, and above `limit`. The increase is taken for a power of the share, the square at
    first, then as the last two trials say, so that a share that does is found where the increase falls slowly or unevenly too. At
    most seven shares are tried, none for a limit below 0.
    """
    if limit < 0:
        return 0.0
    low, high, at_high, power = 0.0, 1.0, whole, _LARGEST_POWER
    for trial in range(_MOST_TRIALS):
        if high - low < _NEAR_ENOUGH or (low and trial >= _ENOUGH_TRIALS):
            break
        edge = _EDGE * (high - low)
        share = min(max(high * (limit / at_high) ** (1 / power), low + edge), high - edge)
        found = increase_at(share)
        if found <= limit:
            low = share
            continue
        grown = math.log(at_high / found) / math.log(high / share)
        high, at_high, power = share, found, min(max(grown, _LEAST_POWER), _LARGEST_POWER)
    return low


def shrink(
    engine: Shrinkable,
    trained: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    measure: Callable[[], float],
    whole: float,
    limit: float,
) -> float:
    """Set an engine's weights to as much of the change from `start` to `trained` as `limit` allows, and return the share kept.

    Both have every tensor of the engine's state by name; they stay as they are. `measure` returns the increase of perplexity on
    general text with the engine's weights, `whole` is that of `trained`. On several ranks all have to call this.
    """
    set_to = -1.0

    def increase_at(share: float) -> float:
        nonlocal set_to
        engine.set_weights(WeightsBetween(start, trained, share))
        set_to = share
        found = measure()
        logger.info("general text: %.0f %% of the change, perplexity %+.1f %%", 100 * share, 100 * found)
        return found

    share = largest_share(increase_at, whole, limit)
    if share != set_to:
        engine.set_weights(WeightsBetween(start, trained, share))
    return share


class WeightsBetween(Mapping[str, Tensor]):
    """The weights that have made a share of the way, each computed when asked for; of LoRA's factors only B goes it, from 0."""

    def __init__(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> None:
        self._start, self._trained, self._share = start, trained, share

    def __getitem__(self, name: str) -> Tensor:
        end = self._trained[name]
        if _LORA_B in name:
            return end * self._share
        if name not in self._start or not end.is_floating_point():
            return end
        return self._start[name].to(end).lerp(end, self._share)

    def __iter__(self) -> Iterator[str]:
        return iter(self._trained)

    def __len__(self) -> int:
        return len(self._trained)
