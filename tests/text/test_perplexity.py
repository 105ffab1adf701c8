"""Losses as a filter: bounds of shares and nats by domain against sorting, whatever files documents are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.core.json_files import write_json
from adapt.core.runtime import generator_for
from adapt.text.cleaning.config import PerplexityConfig
from adapt.text.cleaning.perplexity import HIGH, LOW, bounds_of, cells_in, counted


def verdicts(losses: dict[str, list[float]], config: PerplexityConfig) -> dict[str, list[str | None]]:
    bounds = bounds_of(counted(losses), config)
    return {domain: [bounds[domain].verdict(one) for one in found] for domain, found in losses.items()}


def test_shares_are_dropped_within_each_domain_from_both_ends() -> None:
    random = generator_for("losses")
    losses = {"easy": random.uniform(0.5, 1.5, 400).tolist(), "hard": random.uniform(3, 6, 400).tolist()}
    found = verdicts(losses, PerplexityConfig(lowest_share=0.1, highest_share=0.05))
    for domain, nats in losses.items():
        order = np.argsort(nats)
        low, high = ({i for i, why in enumerate(found[domain]) if why == name} for name in (LOW, HIGH))
        # A cell is dropped as a whole or not at all, so a share is met from below.
        assert low == set(order[: len(low)].tolist()) and 37 <= len(low) <= 40
        assert high == set(order[-len(high) :].tolist()) and 17 <= len(high) <= 20


def test_documents_of_one_loss_stay_together() -> None:
    found = verdicts({"d": [1.0] * 90 + [2.0] * 10}, PerplexityConfig(highest_share=0.05))
    assert found == {"d": [None] * 100}
    found = verdicts({"d": [1.0] * 90 + [2.0] * 10}, PerplexityConfig(highest_share=0.1))
    assert found == {"d": [None] * 90 + [HIGH] * 10}


def test_nats_bound_all_domains_beside_shares() -> None:
    losses = {"a": [0.1, 1.0, 2.0, 30.0], "b": [4.0, 5.0]}
    found = verdicts(losses, PerplexityConfig(highest_share=0.0, min_nats=0.5, max_nats=4.5))
    assert found == {"a": [LOW, None, None, HIGH], "b": [None, HIGH]}
    assert verdicts(losses, PerplexityConfig(highest_share=0.0)) == {"a": [None] * 4, "b": [None] * 2}


def test_histograms_of_files_add_up(tmp_path: Path) -> None:
    parts = [{"a": [1.0, 1.0, 3.0]}, {"a": [3.0, 0.0], "b": [25.0]}]
    for number, part in enumerate(parts):
        write_json(tmp_path / f"{number:05d}.cells.json", counted(part))
    assert cells_in(tmp_path) == counted({"a": [1.0, 1.0, 3.0, 3.0, 0.0], "b": [25.0]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lowest_share": 0.5, "highest_share": 0.5}, "drop everything"),
        ({"min_nats": 3.0, "max_nats": 2.0}, "less than max_nats"),
        ({"tokens": 1}, "2 or more"),
    ],
)
def test_bounds_that_leave_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PerplexityConfig(**settings)
