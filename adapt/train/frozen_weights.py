"""Refusing `offload.frozen_weights=mapped` where a training has no frozen weights that can stay in their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapt.checkpoint.frozen_views import check_stacks
from adapt.checkpoint.hf_directory import is_delta
from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig
from adapt.core.errors import ConfigError
from adapt.model.lora_config import QUANTIZED_BITS, LoraConfig
from adapt.train.train_config import Trained

_KEY = "offload.frozen_weights=mapped"


def check_frozen_weights(directory: Path, offload: OffloadConfig, trains: Trained, lora: LoraConfig, *, on_cpu: bool) -> None:
    """Raise ConfigError where frozen weights of a Hugging Face base are to be mapped, and there are none or they cannot be."""
    if offload.frozen_weights is FrozenWeightsIn.MEMORY:
        return
    if trains is Trained.ALL:
        raise ConfigError(f"{_KEY}: continue_pretrain.trains=all freezes nothing; set trains=lora, or frozen_weights=memory")
    if not on_cpu:
        raise ConfigError(f"{_KEY}: is for ranks that train on CPUs; a GPU needs weights in its own memory: set it to memory")
    if trains is Trained.LORA and lora.base_bits in QUANTIZED_BITS:
        raise ConfigError(f"{_KEY}: continue_pretrain.lora.base_bits={lora.base_bits} makes a copy in memory; set it to 16")
    if is_delta(directory):
        raise ConfigError(f"{_KEY}: {directory} is a delta and is added to its base in memory; merge it first (export.form=merged)")
    check_stacks(directory)


def can_map(directory: Path, offload: OffloadConfig, trains: Trained, lora: LoraConfig, *, on_cpu: bool) -> bool:
    """Say whether frozen weights that are in memory could be mapped."""
    if offload.frozen_weights is FrozenWeightsIn.MAPPED:
        return False
    try:
        check_frozen_weights(directory, replace(offload, frozen_weights=FrozenWeightsIn.MAPPED), trains, lora, on_cpu=on_cpu)
    except ConfigError:
        return False
    return True


def refuse_mapped_own(offload: OffloadConfig) -> None:
    """Raise ConfigError where frozen weights of a model of this project's own are to be mapped."""
    if offload.frozen_weights is FrozenWeightsIn.MAPPED:
        raise ConfigError(
            f"{_KEY}: is for Hugging Face bases, and this is a model of this project's own; set it to memory, and "
            "offload.optimizer=paged offload.trained_weights=mapped for weights in files"
        )
