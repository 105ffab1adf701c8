"""Trains every kind of cut on four ranks and saves what came out; run by `test_four_ranks.py`, in one launch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.core.spans import LabelLoss
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from tests.support.ranks.rank_cases import MODELS, STEPS, leave, plain_rows, train_on_ranks

WORLD_SIZE = 4
# Nine rows on four ranks: one cut; two micro-batches, of which some are empty; three with padding.
CUTS = {"one cut": (3, 1), "some empty": (2, 1), "padded": (1, 16)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its loss, the ZeRO stage, and how a step is cut."""

    model: str
    label: LabelLoss
    scope: BalanceScope
    stage: int
    cut: str

    def __str__(self) -> str:
        return f"{self.model}, {self.label.value}, balance by {self.scope.value}, ZeRO-{self.stage}, {self.cut}"

    @property
    def objective(self) -> ObjectiveConfig:
        """Return a loss with every part in it, at weights that differ."""
        whole = ObjectiveConfig(pseudo_label=self.label, balance=BalanceConfig(weight=0.1, scope=self.scope))
        return replace(whole, weights=replace(whole.weights, context=1.0, prompt=0.5, pseudo_label=2.0))


CASES = [
    Case(model=model, label=label, scope=scope, stage=stage, cut=cut)
    for model, label, scope, stage, cut in itertools.product(
        ("dense", "sparse", "noisy"),
        (LabelLoss.CLM, LabelLoss.MLM),
        (BalanceScope.STEP, BalanceScope.SEQUENCE),
        (0, 1, 2),
        CUTS,
    )
    if (model != "dense" or scope is BalanceScope.STEP) and (model != "noisy" or (label is LabelLoss.CLM and cut == "some empty"))
]


def main(place: Path) -> None:
    rank = rank_from_environment()
    results = {}
    for case in CASES:
        micro_batch, padding = CUTS[case.cut]
        engine = EngineConfig(
            world_size=rank.world_size,
            zero_stage=case.stage,
            precision=Precision.FP32,
            micro_batch=micro_batch,
            pad_multiple=padding,
        )
        rows = plain_rows(case.objective)
        results[str(case)] = train_on_ranks(MODELS[case.model], case.objective, rows, engine, place / str(case), STEPS)
    leave(results, place)
