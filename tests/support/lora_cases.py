"""Tiny Hugging Face bases with a low-rank update that does something, and what plain PEFT and transformers make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_model, save_trained
from adapt.model.hf import PREFIX, HFModel
from adapt.model.lora import add_lora
from adapt.model.lora_config import LoraConfig, LoraTarget
from tests.support.hf_checkpoints import make_checkpoint

A, M, E, R = LoraTarget.ATTENTION, LoraTarget.MLP, LoraTarget.EXPERTS, LoraTarget.ROUTER
# Each family with all groups that it has.
ALL_GROUPS: dict[str, list[LoraTarget]] = {
    "gemma2": [A, M],
    "gemma3_text": [A, M],
    "glm4": [A, M],
    "llama": [A, M],
    "mistral": [A, M],
    "olmo2": [A, M],
    "qwen2": [A, M],
    "olmo3": [A, M],
    "phi3": [A, M],
    "qwen3": [A, M],
    "smollm3": [A, M],
    "deepseek_v2": [A, M, E, R],
    "deepseek_v3": [A, M, E, R],
    "glm4_moe": [A, M, E, R],
    "gpt_oss": [A, E, R],
    "mixtral": [A, E, R],
    "olmoe": [A, E, R],
    "qwen2_moe": [A, M, E, R],
    "qwen3_moe": [A, E, R],
}


def opened(place: Path) -> HFModel:
    """Open a Hugging Face base or a delta."""
    model = load_model(place)
    assert isinstance(model, HFModel)
    return model


def with_lora(base: Path, config: LoraConfig, seed: int = 0) -> HFModel:
    """Return a base with factors beside it, B drawn at random where training would begin at 0."""
    model = opened(base)
    add_lora(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def saved_delta(place: Path, model: HFModel, base: Path) -> Path:
    """Write what lies beside a base as training does at its end."""
    place.mkdir(parents=True)
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    save_trained(place, model, trained, load_tokenizer(base, model))
    return place


def base_and_delta(place: Path, family: str, **changes: Any) -> tuple[Path, Path]:
    """Make a base of a family and a delta on it that changes every group."""
    base = make_checkpoint(place / "base", family, **changes)
    config = LoraConfig(rank=3, alpha=5.0, targets=ALL_GROUPS[family])
    return base, saved_delta(place / "delta", with_lora(base, config), base)


def weights_of(model: HFModel) -> dict[str, torch.Tensor]:
    """Return copies of a model's weights under transformers' names."""
    return {name.removeprefix(PREFIX): parameter.detach().clone() for name, parameter in model.named_parameters()}


def plain_logits(place: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of plain transformers."""
    causal = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    with torch.no_grad():
        return causal(input_ids=ids).logits


def wrapped_logits(model: HFModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of an opened model."""
    with torch.no_grad():
        return model.causal(input_ids=ids).logits
