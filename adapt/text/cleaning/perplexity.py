"""Losses of documents under a model as a filter: what is far too easy or too hard for a base is dropped.

A model's nats a character flow in, histograms by domain and bounds flow out. The model itself is somewhere else: whoever cleans
hands in a function of texts. Low losses are those of boilerplate and repeats, high ones those of word lists, garbled text and other
languages (Wenzek et al. 2020, CCNet, LREC; there with an n-gram model and thirds by language). Shares are taken within a domain,
since domains differ by more than good and bad documents of one do. Histograms have cells of a thousandth of a nat: what is kept in
memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapt.text.cleaning.config import PerplexityConfig

Losses = Callable[[Sequence[str]], NDArray[np.float64]]  # nats a character of each text
LOW, HIGH = "low perplexity", "high perplexity"
_CELLS_A_NAT = 1000
_CELLS = 20 * _CELLS_A_NAT  # the last one has all above


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Between which cells a domain's documents are kept, both included."""

    least: int
    most: int

    def verdict(self, nats: float) -> str | None:
        """Return why a document is dropped; None where it is kept."""
        cell = cell_of(nats)
        return LOW if cell < self.least else HIGH if cell > self.most else None


def cell_of(nats: float) -> int:
    """Return the cell of a loss."""
    return min(max(int(nats * _CELLS_A_NAT), 0), _CELLS - 1)


def counted(losses: Mapping[str, Sequence[float]]) -> dict[str, dict[int, int]]:
    """Return how many documents of each domain are in which cell."""
    found: dict[str, dict[int, int]] = {}
    for domain, nats in losses.items():
        cells, counts = np.unique([cell_of(one) for one in nats], return_counts=True)
        found[domain] = dict(zip(cells.tolist(), counts.tolist(), strict=True))
    return found


def bounds_of(cells: Mapping[str, Mapping[int, int]], config: PerplexityConfig) -> dict[str, Bounds]:
    """Return the bounds of each domain. At most the shares asked for are dropped: a cell is dropped as a whole or not at all."""
    found = {}
    for domain, counts in cells.items():
        counts_C = np.zeros(_CELLS, np.int64)
        counts_C[list(counts)] = list(counts.values())
        below_C = np.cumsum(counts_C)
        n = int(below_C[-1])
        least = int(np.searchsorted(below_C, np.floor(config.lowest_share * n), side="right"))
        most = int(np.searchsorted(below_C, n - np.floor(config.highest_share * n), side="left"))
        if config.min_nats is not None:
            least = max(least, cell_of(config.min_nats))
        if config.max_nats is not None:
            most = min(most, cell_of(config.max_nats))
        found[domain] = Bounds(least=least, most=most)
    return found


def cells_in(place: Path) -> dict[str, dict[int, int]]:
    """Add up the histograms of all files."""
    total: dict[str, Counter[int]] = {}
    for file in sorted(place.glob("*.cells.json")):
        for domain, cells in json.loads(file.read_text(encoding="utf-8")).items():
            total.setdefault(domain, Counter()).update({int(cell): n for cell, n in cells.items()})
    return dict(total)
