"""Trains a low-rank update beside tiny Hugging Face bases on real ranks; run by `test_lora.py`, one launch per world size."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.weights import load_model
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.hf import HFModel
from adapt.model.lora_config import LoraConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only
from tests.support.hf_checkpoints import make_model
from tests.support.lora_cases import ALL_GROUPS
from tests.support.ranks.rank_cases import BATCH_ROWS, OBJECTIVES, OPTIMIZER, STEPS, Killed, leave, plain_rows, train_model_on_ranks

# name -> (family, micro-batch rows, ZeRO stage, precision)
CASES = {
    "llama": ("llama", 4, 2, Precision.FP32),
    "llama, ZeRO-0": ("llama", 3, 0, Precision.FP32),
    "mixtral": ("mixtral", 4, 2, Precision.FP32),
    "mixtral, ZeRO-0": ("mixtral", 4, 0, Precision.FP32),
    "qwen2_moe, ZeRO-1": ("qwen2_moe", 5, 1, Precision.FP32),
    "deepseek_v3": ("deepseek_v3", 4, 2, Precision.FP32),
    "gpt_oss, ZeRO-0": ("gpt_oss", 4, 0, Precision.FP32),
    "gemma2, ZeRO-1": ("gemma2", 3, 1, Precision.FP32),
}
RESUMED = ("mixtral", "llama, ZeRO-0")
IN_BF16 = "llama in bf16"
FAST = {1: ("llama", "mixtral, ZeRO-0"), 2: ("mixtral", "mixtral, resumed", "llama, ZeRO-0", IN_BF16)}
OBJECTIVE = OBJECTIVES["clm", "step"]
SEED = 11


def lora_of(family: str) -> LoraConfig:
    return LoraConfig(rank=3, alpha=6.0, targets=ALL_GROUPS[family])


def base_with_lora(family: str, place: Path) -> HFModel:
    """Make a base at `place`, where it is not there yet, and put factors beside it as a job does."""
    if not place.is_dir():
        make_model(place, family, 120)
    model = load_model(place)
    assert isinstance(model, HFModel)
    train_only(model, Trained.LORA, lora_of(family), SEED)
    return model


def run_case(case: tuple[str, int, int, Precision], place: Path, killed_at: int | None = None) -> dict[str, Any]:
    """Train a case; return also what the optimizer holds and whether the base is as it was."""
    family, micro_batch, stage, precision = case
    rank = rank_from_environment()
    model = base_with_lora(family, place.parent / f"{family}-{rank.rank}")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    engine = EngineConfig(world_size=rank.world_size, zero_stage=stage, precision=precision, micro_batch=micro_batch)
    training = TrainConfig(
        steps=STEPS, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=2, trains=Trained.LORA, lora=lora_of(family)
    )
    found = train_model_on_ranks(model, OBJECTIVE, plain_rows(OBJECTIVE), engine, place, training, killed_at=killed_at)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    after = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    found["frozen has gradients"] = any(p.grad is not None for p in frozen)
    found["base is as it was"] = all(torch.equal(after[name], value.to(after[name].dtype)) for name, value in before.items())
    return found


def main(place: Path, *names: str) -> None:
    results: dict[str, Any] = {}
    cases = {name: ("llama", 4, 2, Precision.BF16) if name == IN_BF16 else CASES[name.removesuffix(", resumed")] for name in names}
    for family in {family for family, *_ in cases.values()}:
        base_with_lora(family, place / f"{family}-{rank_from_environment().rank}")  # once ranks have met, only rank 0 writes one
    for name, case in cases.items():
        if name.endswith(", resumed"):
            with contextlib.suppress(Killed):
                run_case(case, place / name, killed_at=3)
        results[name] = run_case(case, place / name)
    leave(results, place)
