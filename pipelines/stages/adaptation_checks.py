"""What an adaptation is refused for before anything is labelled: a base without what is to be trained, or too large."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from adapt.checkpoint.hf_directory import is_delta, is_hf_directory
from adapt.checkpoint.offload import OffloadConfig
from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError
from adapt.core.json_files import read_object
from adapt.core.runtime import ONCE
from adapt.model.config import GPTConfig
from adapt.model.lora_config import QUANTIZED_BITS, LoraTarget
from adapt.train.engine_config import EngineConfig
from adapt.train.train_config import Trained
from pipelines.config.adapt_settings import AdaptConfig, MomentsStart
from pipelines.stages.models import weights_of

_MOMENTS_DIRECTORY = "moments"
logger = logging.getLogger(__name__)


def own_model_of(base: Artifact) -> GPTConfig | None:
    """Return the model configuration of a base of this project; None of a Hugging Face one."""
    if is_hf_directory(weights_of(base)):
        return None
    from adapt.checkpoint.weights import load_config  # imports torch

    return load_config(weights_of(base))


def check_training(base: Artifact, settings: AdaptConfig, engine: EngineConfig, offload: OffloadConfig) -> None:
    """Raise ConfigError where a base has nothing of what is to be trained, or its training does not fit."""
    model = own_model_of(base)
    if model is not None:
        check_own_training(model, settings, engine, offload)
        return
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.hf_families import check_recompute
    from adapt.train.frozen_weights import check_frozen_weights
    from adapt.train.memory_checks import check_foreign_memory, computes_on_cpus

    check_share((), engine.expert_parallel)
    check_recompute(_family_of(weights_of(base)), engine.activation_checkpointing)
    _check_foreign_trained(base, settings)
    check_frozen_weights(weights_of(base), offload, settings.trains, settings.lora, on_cpu=computes_on_cpus(engine))
    if not is_delta(weights_of(base)):
        check_foreign_memory(
            weights_of(base), engine, offload, settings.trains, settings.lora, settings.optimizer, settings.batch_rows,
            is_kept_near=bool(settings.divergence_weight),
        )  # fmt: skip


def check_own_training(model: GPTConfig, settings: AdaptConfig, engine: EngineConfig, offload: OffloadConfig) -> None:
    """Raise ConfigError where this project's model has nothing of what is to be trained, or its training does not fit."""
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.gpt import GPT
    from adapt.train.frozen_weights import refuse_mapped_own
    from adapt.train.memory_checks import check_memory
    from adapt.train.trainable import train_only

    refuse_mapped_own(offload)
    check_share(GPT(model).expert_counts, engine.expert_parallel)
    try:
        train_only(GPT(model), settings.trains)
    except ConfigError as error:
        raise ConfigError(f"continue_pretrain.{error}") from error
    is_kept_near = bool(settings.divergence_weight)
    check_memory(model, engine, offload, settings.optimizer, settings.trains, settings.batch_rows, is_kept_near=is_kept_near)


def moments_of(base: Artifact, settings: AdaptConfig) -> Path | None:
    """Return where the base's optimizer moments are, if they are to be kept.

    Raises:
        ConfigError: it has none.
    """
    if settings.moments is MomentsStart.FRESH:
        return None
    place = weights_of(base)
    if not (place / _MOMENTS_DIRECTORY).is_dir():
        raise ConfigError(
            f"continue_pretrain.moments=keep: {place} has no optimizer moments; pretrain it with pretrain.keeps_moments=true, or "
            "use continue_pretrain.moments=fresh"
        )
    return place


def _family_of(place: Path) -> str:
    """Return the `model_type` of a Hugging Face directory, or of a delta's base."""
    from adapt.checkpoint.delta import read_record  # imports torch

    found = read_object((Path(read_record(place).base) if is_delta(place) else place) / "config.json")
    return str(found["model_type"])


def refuse_missing_groups(model_type: str, settings: AdaptConfig, place: Path) -> None:
    """Raise ConfigError where a Hugging Face base, by its family, has no experts or routers, and such are to be trained."""
    from adapt.model.hf_families import SPARSE_FAMILIES

    if model_type in SPARSE_FAMILIES:
        return
    trains = settings.trains
    if trains in (Trained.EXPERTS, Trained.ROUTER):
        raise ConfigError(f"continue_pretrain.trains={trains.value}: {place} is a dense model; use all, dense or head")
    targets = settings.lora.targets if trains is Trained.LORA else None
    for target in targets or ():
        if target in (LoraTarget.EXPERTS, LoraTarget.ROUTER):
            raise ConfigError(
                f"continue_pretrain.lora.targets: {place} is a dense model and has no parameters of the group '{target.value}'; it "
                "has: attention, mlp"
            )


def _check_foreign_trained(base: Artifact, settings: AdaptConfig) -> None:
    """Raise ConfigError where a Hugging Face base has none of the parameters that are to be trained."""
    from adapt.model.hf import shapes_of  # imports torch
    from adapt.model.lora import import_peft
    from adapt.model.low_rank import said_of_groups, targeted, trained_by_group

    trains, place = settings.trains, weights_of(base)
    refuse_missing_groups(_family_of(place), settings, base.path)
    if trains is not Trained.LORA:
        return
    import_peft()
    if settings.lora.base_bits in QUANTIZED_BITS:
        from adapt.model.quantized_base import import_bitsandbytes

        import_bitsandbytes(settings.lora.base_bits)
    if is_delta(place):
        raise ConfigError(
            f"continue_pretrain.trains=lora: {place} is a delta itself; start from its base, or merge it first (export.form=merged)"
        )
    try:
        shapes = {name: tuple(shape) for name, shape in shapes_of(place)[0].items()}
        groups = targeted(shapes, settings.lora, str(base.path))
    except ConfigError as error:
        raise ConfigError(f"continue_pretrain.{error}") from error
    said = said_of_groups(trained_by_group(shapes, groups, settings.lora.rank), sum(map(math.prod, shapes.values())))
    logger.info("continue_pretrain: LoRA: %s", said, extra=ONCE)
