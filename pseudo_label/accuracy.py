"""Accuracy with its 95 % interval (Wilson 1927)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers among `n`, and the interval that holds the true share with 95 % confidence."""

    n: int
    accuracy: float
    ci95: tuple[float, ...]


def accuracy_of(predictions: Sequence[str], labels: Sequence[str]) -> Accuracy:
    """Compare predictions with labels of the same length; n may be 0 (interval [0, 1])."""
    n = len(labels)
    right = sum(p == g for p, g in zip(predictions, labels, strict=True))
    if n == 0:
        return Accuracy(n=0, accuracy=0.0, ci95=(0.0, 1.0))
    share = right / n
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return Accuracy(n=n, accuracy=share, ci95=(max(middle - half, 0.0), min(middle + half, 1.0)))
