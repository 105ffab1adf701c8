"""How experts become one feed-forward part: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.settings import Settings, setting


class Weighting(enum.Enum):
    """What an expert counts in the mean of its group's: the weight that its output has on average over text, or each the same."""

    FREQUENCY = "frequency"
    EVEN = "even"


class MergeMethod(enum.Enum):
    """What a layer's student starts from: means of experts, the singular vectors of matched neurons, or the largest neurons."""

    MEAN = "mean"
    SVD = "svd"
    TOP_NEURONS = "top_neurons"


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Settings):
    """Merging a layer's experts."""

    method: MergeMethod = setting(
        MergeMethod.MEAN,
        "What becomes of the experts: their mean, leading singular vectors of their matched neurons (svd), or the neurons with the "
        "largest weights (top_neurons).",
    )
    weighting: Weighting = setting(
        Weighting.FREQUENCY,
        "What each expert counts in a mean (method=mean): as much as the router gives it over the text that is read for it "
        "(frequency), or all the same (even).",
    )
    is_aligned: bool = setting(
        True,
        "Orders each expert's neurons like those of its group's most used expert before the mean; experts that were trained from "
        "random weights have them in no common order.",
    )
    groups: int = setting(
        1,
        "Groups that a layer's experts are dealt into; each becomes one mean, and the means are put side by side in a wider layer.",
        least=1,
        hint="as many as there are experts keeps all of them, as if each token went to every expert with its mean weight",
    )
    rows: int = setting(128, "Rows of the text over which the router's decisions are counted.", least=1, unit="rows")
