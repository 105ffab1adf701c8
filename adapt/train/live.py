"""What a training leaves while it runs for those who watch: `<work>/live.json`, replaced at most once a second.

Rank 0 writes it, and nothing reads it but `pipelines.watch`: a disk that cannot take it never costs a step. This file imports no
torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_json
from adapt.core.typed import from_plain, to_plain
from adapt.train.expert_loads import Shares

LIVE_FILE = "live.json"
_EVERY_S = 1.0
_LOSS = "loss/"


@dataclass(frozen=True, kw_only=True)
class LiveTraining:
    """A training at one of its steps; `at` is seconds since 1970, `peak_bytes` rank 0's.

    `losses` are by part, those with nothing to predict left out. `shares` are each expert's share of the step's routed pairs, by
    MoE layer.
    """

    at: float
    step: int
    steps: int
    tokens_per_s: float
    peak_bytes: int
    left_s: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    shares: Shares = field(default_factory=list)


class LiveFile:
    """Writes a training's newest step; rank 0 has one."""

    def __init__(self, work: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._place, self._clock = work / LIVE_FILE, clock
        self._due = -math.inf

    def show(
        self,
        line: Mapping[str, float],
        steps: int,
        tokens_per_s: float,
        left_s: float | None,
        peak: Callable[[], int],
        shares: Callable[[], Shares],
    ) -> None:
        """Write a line of the history, if a second has passed since the last one or it is the last; else nothing is asked for."""
        now = self._clock()
        if now < self._due and line["step"] < steps:
            return
        self._due = now + _EVERY_S
        found = LiveTraining(
            at=time.time(),
            step=int(line["step"]),
            steps=steps,
            tokens_per_s=tokens_per_s,
            peak_bytes=peak(),
            left_s=left_s,
            losses={
                name.removeprefix(_LOSS): value
                for name, value in line.items()
                if name.startswith(_LOSS) and line.get(name.replace(_LOSS, "count/"), 1.0) and math.isfinite(value)
            },
            shares=shares(),
        )
        with contextlib.suppress(OSError):
            scratch = self._place.with_name(f".{LIVE_FILE}")
            scratch.write_text(json.dumps(to_plain(found)), encoding="utf-8")
            scratch.replace(self._place)


def read_live(work: Path) -> LiveTraining | None:
    """Return the newest step of a training in `work`; None where none has come that far, or another version wrote it."""
    try:
        return from_plain(LiveTraining, read_json(work / LIVE_FILE), LIVE_FILE)
    except (CheckpointError, ConfigError):
        return None
