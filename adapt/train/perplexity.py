"""How far perplexity moved between two measurements of the same rows; importable without torch.

Legend: R rows.
"""

from __future__ import annotations

import math

from adapt.core.scorer import FloatArray


def ppl_increase(before_R2: FloatArray, after_R2: FloatArray) -> float:
    """Return by which share perplexity rose, of losses by row [R, 2]: (sum of NLL in nats, number of targets)."""
    return float(math.expm1((after_R2[:, 0].sum() - before_R2[:, 0].sum()) / before_R2[:, 1].sum()))
