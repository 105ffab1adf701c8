"""How far training's change is taken where general text allows only a part of it."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from adapt.train.perplexity import ppl_increase
from adapt.train.shrinking import WeightsBetween, largest_share, shrink


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("whole", [0.04, 0.2, 3.0])
def test_the_share_is_near_the_largest_that_the_limit_allows(power: float, whole: float) -> None:
    limit, tried = 0.03, []

    def increase_at(share: float) -> float:
        tried.append(share)
        return whole * share**power

    share = largest_share(increase_at, whole, limit)
    best = (limit / whole) ** (1 / power)
    assert whole * share**power <= limit
    assert best - share <= 0.15
    assert len(tried) <= 5


def test_an_increase_that_falls_slowly_and_unevenly_still_leaves_a_share() -> None:
    """So it was measured once: 40 % cost 5.1 %, 30 % 4.0, 26 % 3.4, 22 % 3.2, 19 % 4.4; no share was found."""
    shares, costs = [0.0, 0.17, 0.19, 0.22, 0.26, 0.3, 0.4, 1.0], [0.0, 0.03, 0.044, 0.032, 0.034, 0.04, 0.051, 0.18]
    found = largest_share(lambda share: float(np.interp(share, shares, costs)), 0.18, 0.03)
    assert 0.05 < found <= 0.17


def test_no_share_is_kept_where_every_one_costs_more() -> None:
    assert largest_share(lambda share: 1.0, 1.0, 0.01) == 0.0
    assert largest_share(lambda share: 1.0, 1.0, -0.5) == 0.0


def test_the_increase_is_that_of_perplexity_over_all_tokens() -> None:
    before, after = np.asarray([[20.0, 10.0], [90.0, 30.0]]), np.asarray([[24.0, 10.0], [94.0, 30.0]])
    assert ppl_increase(before, after) == pytest.approx(np.exp(118 / 40) / np.exp(110 / 40) - 1)


class _Held:
    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)


def test_the_weights_that_stay_are_those_of_the_share_that_was_kept() -> None:
    start, trained = {"w": torch.zeros(3)}, {"w": torch.ones(3), "steps": torch.tensor(7)}
    held = _Held()
    share = shrink(held, trained, start, lambda: float(held.weights["w"][0]) ** 2, 1.0, 0.25)
    assert share == pytest.approx(0.5, abs=0.1)
    assert torch.equal(held.weights["w"], torch.full((3,), share))
    assert int(held.weights["steps"]) == 7


def test_of_lora_only_b_is_scaled() -> None:
    trained = {"x.lora_A.default.weight": torch.ones(2), "x.lora_B.default.weight": torch.ones(2)}
    found = WeightsBetween({}, trained, 0.25)
    assert torch.equal(found["x.lora_A.default.weight"], torch.ones(2))
    assert torch.equal(found["x.lora_B.default.weight"], torch.full((2,), 0.25))
