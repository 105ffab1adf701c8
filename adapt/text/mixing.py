"""Rows held in memory, and several sources of rows mixed into one at fixed numbers per epoch.

Source rows flow in, one source of rows flows out whose order `StepOrder` shuffles. Which row of which source stands at a place
follows only from (seed, epoch, place), as the order of training data must: there is no position to save and none to lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from adapt.core.runtime import generator_for
from adapt.core.spans import IntArray, Reading
from adapt.text.packing import RowSource


class RowList:
    """Rows held in memory, each of one or more readings."""

    def __init__(self, rows: list[list[Reading]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int, epoch: int) -> list[Reading]:
        return self._rows[index]


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A source and how many of its rows come in an epoch of the mix: fewer than it has, or more."""

    name: str
    source: RowSource
    rows_per_epoch: int


class MixedRows:
    """Several sources as one. Each goes through all its rows, in a seeded order of its own, before one of them comes again."""

    def __init__(self, ingredients: Sequence[Ingredient], seed: int) -> None:
        self._ingredients = [part for part in ingredients if part.rows_per_epoch and len(part.source)]
        self._ends = np.cumsum([part.rows_per_epoch for part in self._ingredients])
        self._seed = seed

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int, epoch: int) -> list[Reading]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        part = self._ingredients[which]
        place = index - (int(self._ends[which - 1]) if which else 0)
        own_epoch, offset = divmod(epoch * part.rows_per_epoch + place, len(part.source))
        return part.source.row(int(_order(self._seed, part.name, own_epoch, len(part.source))[offset]), own_epoch)


def mixed(ingredients: Sequence[Ingredient], seed: int) -> RowSource:
    """Mix sources; a single one of which every row comes once an epoch is taken as it is."""
    if len(ingredients) == 1 and ingredients[0].rows_per_epoch == len(ingredients[0].source):
        return ingredients[0].source
    return MixedRows(ingredients, seed)


@lru_cache(maxsize=16)
def _order(seed: int, name: str, epoch: int, n_rows: int) -> IntArray:
    return generator_for("mix", seed, name, epoch).permutation(n_rows)
