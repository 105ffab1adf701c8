"""Training states: everything that the next step reads, in a directory that is complete or absent.

`<work>/step-00000100/` holds weights and moments by parameter name (safetensors), and `state.json` (step, lagged shares, history),
whose presence marks the state complete: the directory is renamed into place after all of it was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapt.core.artifacts import writable
from adapt.train.engine import MOMENTS, Engine

_WEIGHTS = "weights"


@dataclass(kw_only=True)
class Progress:
    """What training has done so far, beside weights and moments."""

    step: int
    lagged_shares_LE: list[Tensor]
    history: list[dict[str, float]]


def save_state(work: Path, engine: Engine, progress: Progress, keep: int) -> None:
    """Write the state of this step boundary, then drop all but the newest `keep` states. A collective."""
    final = work / f"step-{progress.step:08d}"
    scratch = work / f".step-{progress.step:08d}"
    is_main = engine.rank.is_main
    with writable(work):
        if is_main:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        _save_tensors(scratch / f"{_WEIGHTS}.safetensors", engine.named_weights(), is_main)
        for which in MOMENTS:
            _save_tensors(scratch / f"{which}.safetensors", engine.named_moments(which), is_main)
        if is_main:
            content: dict[str, Any] = {
                "step": progress.step,
                "lagged_shares": [shares.tolist() for shares in progress.lagged_shares_LE],
                "history": progress.history,
            }
            (scratch / "state.json").write_text(json.dumps(content), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
            for old in _states(work)[:-keep]:
                shutil.rmtree(old)
    engine.barrier()


def load_newest_state(work: Path, engine: Engine) -> Progress | None:
    """Put the newest complete state into the engine and return its progress; None where there is none."""
    states = _states(work)
    if not states:
        return None
    newest = states[-1]
    content = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    engine.set_weights(load_file(newest / f"{_WEIGHTS}.safetensors"))
    moments = {which: load_file(newest / f"{which}.safetensors") for which in MOMENTS}
    engine.set_moments(moments, content["step"])
    return Progress(
        step=content["step"],
        lagged_shares_LE=[torch.tensor(shares, dtype=torch.float64) for shares in content["lagged_shares"]],
        history=content["history"],
    )


def _states(work: Path) -> list[Path]:
    return sorted(path for path in work.glob("step-*") if (path / "state.json").is_file())


def _save_tensors(path: Path, tensors: Iterator[tuple[str, Tensor]], is_main: bool) -> None:
    collected = {}
    for name, tensor in tensors:  # every rank takes part in the gathering
        if is_main:
            collected[name] = tensor.detach().cpu().contiguous()
    if is_main:
        save_file(collected, path)
