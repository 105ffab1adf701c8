"""How tokens spread over experts: at some steps of a training, and over measured rows before and after it. For people to look at.

Shares of routed pairs flow in, by MoE layer and expert; they are kept rounded, of at most some 40 steps, and written beside the
history as `figures.json`, which is no part of an artifact's digest. Nothing is computed from them. This file imports no torch.

Legend: L MoE layers, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapt.core.json_files import read_json
from adapt.core.typed import from_plain, to_plain

_KEPT_STEPS = 40
_DECIMALS = 5
Shares = list[list[float]]  # [L][E], each layer's sum to 1


@dataclass(frozen=True, kw_only=True)
class StepLoads:
    """Each expert's share of a step's routed pairs, by layer."""

    step: int
    shares: Shares


@dataclass(frozen=True, kw_only=True)
class MeasuredLoads:
    """Each expert's share of the same rows' routed pairs, by layer, before and after training."""

    before: Shares
    after: Shares


@dataclass(frozen=True, kw_only=True)
class ExpertLoads:
    """Loads at some steps, and those of measured rows by what they are: a domain, a task, general text."""

    steps: list[StepLoads] = field(default_factory=list)
    measured: dict[str, MeasuredLoads] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> ExpertLoads:
        """Read what `write` wrote. Raises CheckpointError or ConfigError where it is damaged."""
        return from_plain(cls, read_json(file), str(file))

    def write(self, file: Path) -> None:
        """Write a file of a directory that is still being built."""
        file.write_text(json.dumps(to_plain(self)) + "\n", encoding="utf-8")


def is_kept(step: int, steps: int) -> bool:
    """Say whether the loads of a step, counted from 1, are kept: the first, the last, and others evenly."""
    return step in (1, steps) or step % -(-steps // _KEPT_STEPS) == 0


def rounded(shares_LE: Sequence[Sequence[float]]) -> Shares:
    """Return shares as they are kept."""
    return [[round(share, _DECIMALS) for share in layer] for layer in shares_LE]


def compared(before: Mapping[str, Shares], after: Mapping[str, Shares]) -> dict[str, MeasuredLoads]:
    """Join what was measured before and after; rows without a routed token are left out."""
    return {
        name: MeasuredLoads(before=shares, after=after[name])
        for name, shares in before.items()
        if any(share for layer in [*shares, *after[name]] for share in layer)
    }
