"""Accuracy with its 95 % interval (Wilson 1927), and how far predictions spread over the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.statistics import wilson_interval


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers among `n`, and the interval that holds the true share with 95 % confidence."""

    n: int
    accuracy: float
    ci95: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ClassBalance:
    """What shows a collapse: a model that gives one answer has little entropy, a large top share and a large drift.

    `entropy`: mean entropy of the label probabilities as a share of the largest possible. `largest_share`: the share of the most
    frequent answer. `share_drift`: total variation between the classes' shares among answers and among right answers.
    """

    entropy: float
    largest_share: float
    share_drift: float


def accuracy_of(predictions: Sequence[str], labels: Sequence[str]) -> Accuracy:
    """Compare predictions with labels of the same length; n may be 0 (interval [0, 1])."""
    n = len(labels)
    right = sum(p == g for p, g in zip(predictions, labels, strict=True))
    return Accuracy(n=n, accuracy=right / n if n else 0.0, ci95=wilson_interval(right, n))


def balance_of(scores_NC: FloatArray, predictions: Sequence[str], labels: Sequence[str]) -> ClassBalance:
    """Measure how predictions spread; all zero for no rows. Labels that a row does not have stand at -inf."""
    n = len(predictions)
    if n == 0:
        return ClassBalance(entropy=0.0, largest_share=0.0, share_drift=0.0)
    shifted_NC = scores_NC - scores_NC.max(axis=1, keepdims=True)
    probs_NC = np.exp(shifted_NC)
    probs_NC /= probs_NC.sum(axis=1, keepdims=True)
    bits_NC = np.where(probs_NC > 0, -probs_NC * np.log(np.where(probs_NC > 0, probs_NC, 1.0)), 0.0)
    largest_N = np.log(np.maximum(np.isfinite(scores_NC).sum(axis=1), 2))
    given, right = Counter(predictions), Counter(labels)
    drift = sum(abs(given[name] - right[name]) for name in given | right) / (2 * n)
    return ClassBalance(
        entropy=float((bits_NC.sum(axis=1) / largest_N).mean()), largest_share=max(given.values()) / n, share_drift=drift
    )
