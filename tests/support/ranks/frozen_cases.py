"""Trains tiny bases on real ranks with frozen weights in memory and in their files; run by `test_frozen_weights.py`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.offload import FrozenWeightsIn
from adapt.checkpoint.weights import load_model
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.config import Recompute
from adapt.model.hf import HFModel
from adapt.train.engine_config import EngineConfig
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only
from tests.support.hf_checkpoints import make_model_in
from tests.support.ranks.lora_cases import OBJECTIVE, SEED, lora_of
from tests.support.ranks.rank_cases import BATCH_ROWS, OPTIMIZER, STEPS, Killed, leave, plain_rows, train_model_on_ranks

FAMILY = "llama"
# name -> (format of the files, what is trained, precision, ZeRO stage, what the mapped training computes again)
CASES = {
    "converted": (torch.bfloat16, Trained.LORA, Precision.FP32, 2, Recompute.FULL),
    "rounded": (torch.float32, Trained.LORA, Precision.BF16, 2, Recompute.SELECTIVE),
    "as stored": (torch.bfloat16, Trained.HEAD, Precision.BF16, 2, Recompute.NONE),
    "head, ZeRO-0": (torch.bfloat16, Trained.HEAD, Precision.FP32, 0, Recompute.FULL),
}
RESUMED = ("converted", "head, ZeRO-0")


def run_case(name: str, place: Path, frozen: FrozenWeightsIn, killed_at: int | None = None) -> dict[str, Any]:
    stored, trains, precision, stage, recompute = CASES[name]
    rank = rank_from_environment()
    model = load_model(place.parent / f"{name}-base-{rank.rank}", frozen=frozen)
    assert isinstance(model, HFModel)
    train_only(model, trains, lora_of(FAMILY), SEED)
    is_mapped = frozen is FrozenWeightsIn.MAPPED
    engine = EngineConfig(
        world_size=rank.world_size, zero_stage=stage, precision=precision, micro_batch=3,
        activation_checkpointing=recompute if is_mapped else Recompute.NONE,
    )  # fmt: skip
    training = TrainConfig(
        steps=STEPS, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=2, trains=trains, lora=lora_of(FAMILY)
    )
    found = train_model_on_ranks(model, OBJECTIVE, plain_rows(OBJECTIVE), engine, place, training, killed_at=killed_at)
    found["weights"] = {key: weight.float() for key, weight in found["weights"].items()}
    found["formats"] = {p.dtype for p in model.parameters() if not p.requires_grad} == {stored}
    found["read-only"] = is_mapped and all(_is_in_a_file(p) for p in model.parameters() if not p.requires_grad)
    return found


def _is_in_a_file(parameter: torch.Tensor) -> bool:
    """Say whether a tensor's bytes are a private mapping of a file that cannot be written."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        place, access, *_, path = line.split()
        first, last = (int(address, 16) for address in place.split("-"))
        if first <= parameter.data_ptr() < last:
            return access == "r--p" and path.endswith(".safetensors")
    return False


def main(place: Path) -> None:
    rank, results = rank_from_environment().rank, {}
    for name, (stored, *_) in CASES.items():
        make_model_in(place / f"{name}-base-{rank}", FAMILY, 120, stored)
    for name in CASES:
        results[f"{name}, in memory"] = run_case(name, place / f"{name}-memory", FrozenWeightsIn.MEMORY)
        if name in RESUMED:
            with contextlib.suppress(Killed):
                run_case(name, place / f"{name}-mapped", FrozenWeightsIn.MAPPED, killed_at=3)
        results[name] = run_case(name, place / f"{name}-mapped", FrozenWeightsIn.MAPPED)
    leave(results, place)
