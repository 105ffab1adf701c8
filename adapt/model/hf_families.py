"""The families of Hugging Face models that are served exactly, what each needs of the wrapper, and why others are refused.

A family belongs here if its scores are those of plain full passes whatever way rows are packed, branched, padded or continued
(`tests/model/test_hf.py` tries all of it). Within its window, a sliding window hides nothing: a model's context ends there.
Nothing here needs transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapt.core.errors import CheckpointError, ConfigError
from adapt.model.config import Recompute


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the wrapper must know of a family.

    `gate` names the router in the feed-forward part of its sparse layers, absent in dense families. `is_sigmoid`: a router scores
    each expert by itself. `is_eager`: attention has terms (caps, sinks) that only the family's plain products compute.
    `overwrites_choices`: routers write into what they picked, so that it cannot be kept while the rest is computed again.
    """

    gate: str | None = None
    is_sigmoid: bool = False
    is_eager: bool = False
    overwrites_choices: bool = False


_DENSE, _SOFTMAX, _SIGMOID = Family(), Family(gate="gate"), Family(gate="gate", is_sigmoid=True)
_FAMILIES = {
    "gemma2": Family(is_eager=True),
    "gemma3_text": _DENSE,
    "glm4": _DENSE,
    "gpt2": _DENSE,
    "llama": _DENSE,
    "mistral": _DENSE,
    "olmo2": _DENSE,
    "olmo3": _DENSE,
    "phi3": _DENSE,
    "qwen2": _DENSE,
    "qwen3": _DENSE,
    "smollm3": _DENSE,
    "deepseek_v2": _SOFTMAX,
    "deepseek_v3": _SIGMOID,
    "glm4_moe": _SIGMOID,
    "gpt_oss": Family(gate="router", is_eager=True),
    "mixtral": Family(gate="gate", overwrites_choices=True),
    "olmoe": _SOFTMAX,
    "qwen2_moe": _SOFTMAX,
    "qwen3_moe": _SOFTMAX,
}
FAMILIES = tuple(_FAMILIES)
DENSE_FAMILIES = tuple(name for name, family in _FAMILIES.items() if family.gate is None)
SPARSE_FAMILIES = tuple(name for name, family in _FAMILIES.items() if family.gate is not None)
_RECURRENT = "keeps a running state in place of keys and values, which packed documents and branches of a text would share"
_IMAGES = "reads images too, and only models of text are served; give its text part, saved by itself, of model_type"
_REFUSED = {
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "minimax"), _RECURRENT),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "bamba", "falcon_mamba", "recurrent_gemma", "lfm2", "rwkv"), _RECURRENT),
    "gemma3": f"{_IMAGES} gemma3_text",
    "mistral3": f"{_IMAGES} mistral",
    "qwen2_vl": f"{_IMAGES} qwen2",
}


def family_named(name: str, where: str) -> Family:
    """Return a family by its model_type; `where` is what messages call the file that names it.

    Raises:
        CheckpointError: it is not served.
    """
    if name in _REFUSED:
        raise CheckpointError(f"{where}: model_type '{name}' is not served: it {_REFUSED[name]}")
    if name not in _FAMILIES:
        raise CheckpointError(f"{where}: model_type '{name}' is not served; there are: {', '.join(FAMILIES)}")
    return _FAMILIES[name]


def check_family(config: Any, where: str) -> None:
    """Check a configuration (of transformers).

    Raises:
        CheckpointError: its family is not served, or it has a setting with which it would not be exact.
    """
    family_named(str(config.model_type), where)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"{where}: is quantized, and only plain weights can be trained; give the checkpoint it came from")
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if "longrope" in _rope_types(rope):
        raise CheckpointError(f"{where}: longrope turns all rows of a batch by the longest one's angles; it is not served")
    if getattr(config, "use_bidirectional_attention", None):
        raise CheckpointError(f"{where}: use_bidirectional_attention lets tokens see later ones, so it is no language model")


def check_recompute(model_type: str, what: Recompute) -> None:
    """Raise ConfigError where a family's layers cannot be computed again with the decisions of the first time."""
    if what is not Recompute.NONE and _FAMILIES[model_type].overwrites_choices:
        raise ConfigError(
            f"engine.activation_checkpointing: {what.value}: routers of model_type '{model_type}' write into what they picked, so "
            "no decision can be kept; set it to none, and engine.micro_batch lower"
        )


def attention_of(config: Any) -> str:
    """Return which of transformers' implementations of attention computes all of a served family's terms."""
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "eager" if is_capped or _FAMILIES[str(config.model_type)].is_eager else "sdpa"


def _rope_types(rope: Mapping[str, Any]) -> set[str]:
    """Return the kinds of rotation; some families have one for each kind of layer."""
    inner = [value for value in rope.values() if isinstance(value, Mapping)]
    return {str(one.get("rope_type")) for one in [rope, *inner]}
