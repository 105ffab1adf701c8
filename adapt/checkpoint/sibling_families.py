"""Hugging Face families in pairs: a dense one, and a sparse one that differs from it in nothing but the feed-forward part.

Attention, norms, positions and embeddings of a pair compute the same from the same tensors (transformers 5). So a dense model's
tensors go into the sparse family as they are, and back. A family without a sibling is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import CONFIG_FILE
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object
from adapt.model.hf import settings_of
from adapt.model.hf_families import DENSE_FAMILIES, SPARSE_FAMILIES, family_named

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")  # of a gated feed-forward part: down(act(gate(x)) * up(x))
_SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "rope_parameters", "attention_dropout",
)  # fmt: skip
_DROPOUT = ("attention_dropout",)  # off in what transformers was asked for, whatever the file says
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


@dataclass(frozen=True, kw_only=True)
class SparseFamily:
    """Where a sparse family keeps its router and experts in a layer, and what else its layers can be.

    `renames` are the experts' projections by the dense names. `is_partly_dense`: single layers may stay dense. `has_shared`: a
    gated dense part, sigmoid(gate(x)) * mlp(x), is added to the experts in every sparse layer.
    """

    name: str
    block: str
    renames: Mapping[str, str] = field(default_factory=dict)
    is_partly_dense: bool = False
    has_shared: bool = False
    keeps: tuple[str, ...] = ()

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """Return the name of an expert's tensor in files."""
        return f"model.layers.{layer}.{self.block}.experts.{expert}.{self.renames.get(projection, projection)}.weight"

    def gate(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def shared(self, layer: int, projection: str) -> str:
        return f"model.layers.{layer}.{self.block}.shared_expert.{projection}.weight"

    def shared_gate(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.block}.shared_expert_gate.weight"


_MIXTRAL = SparseFamily(
    name="mixtral",
    block="block_sparse_moe",
    renames={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    keeps=("sliding_window",),
)
_QWEN3 = SparseFamily(name="qwen3_moe", block="mlp", is_partly_dense=True, keeps=("attention_bias",))
_QWEN2 = SparseFamily(name="qwen2_moe", block="mlp", is_partly_dense=True, has_shared=True)
SPARSE_OF = {"llama": _MIXTRAL, "mistral": _MIXTRAL, "qwen3": _QWEN3, "qwen2": _QWEN2}
SPARSE = {family.name: family for family in SPARSE_OF.values()}
_WITHOUT = {
    "gemma2": "no sparse family has its norms after attention and feed-forward part and its caps",
    "gemma3_text": "no sparse family has its norms after attention and feed-forward part",
    "glm4": "GLM-4.5-MoE lacks its norms after attention and feed-forward part",
    "gpt2": "no sparse family has its learned positions and its feed-forward part without a gate",
    "olmo2": "its sparse sibling, FlexOlmo, is not among the families that are served here",
    "olmo3": "its sparse sibling, FlexOlmo, has no sliding windows, and is not among the families that are served here",
    "phi3": "Phi-3.5-MoE has layer norms with biases and biases in attention",
    "smollm3": "no sparse family leaves out rotary positions in every fourth layer",
    "deepseek_v2": "no dense family that is served has its latent attention",
    "deepseek_v3": "no dense family that is served has its latent attention",
    "glm4_moe": "no dense family that is served has its attention without norms after it",
    "gpt_oss": "no dense family has its attention sinks",
    "olmoe": "no dense family that is served normalises queries and keys over all heads before its layers",
}


def sparse_family_of(directory: Path) -> SparseFamily:
    """Return the sparse sibling of a dense Hugging Face model's family.

    Raises:
        CheckpointError: the model is sparse, its family has no sibling, or it has a setting that the sibling lacks.
    """
    place = directory / CONFIG_FILE
    content = read_object(place)
    name = str(content.get("model_type"))
    family_named(name, str(place))
    if name in SPARSE_FAMILIES:
        raise CheckpointError(f"{place}: model_type '{name}' is sparse already; upcycling takes a dense model")
    if name not in SPARSE_OF:
        raise _without_sibling(place, name, "sparse", SPARSE_OF)
    kept = SPARSE_OF[name].keeps
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if content.get(key) and key not in kept:
            raise CheckpointError(
                f"{place}: has {key}, which the layers of {SPARSE_OF[name].name} have not, so answers would change"
            )
    return SPARSE_OF[name]


def _without_sibling(place: Path, name: str, kind: str, having: Iterable[str]) -> CheckpointError:
    return CheckpointError(
        f"{place}: model_type '{name}' has no {kind} sibling with the same attention: {_WITHOUT[name]}; those that have one: "
        f"{', '.join(having)}"
    )


def dense_name_of(directory: Path) -> str:
    """Return the dense sibling's model_type of a sparse Hugging Face model.

    Raises:
        CheckpointError: the model is dense, or its family has no sibling.
    """
    place = directory / CONFIG_FILE
    content = read_object(place)
    name = str(content.get("model_type"))
    family_named(name, str(place))
    if name in DENSE_FAMILIES:
        raise CheckpointError(f"{place}: model_type '{name}' is dense already; a dense student is made of a sparse model")
    if name not in SPARSE:
        raise _without_sibling(place, name, "dense", SPARSE)
    if content.get("use_sliding_window"):
        raise CheckpointError(f"{place}: has use_sliding_window, which sibling families read in different layers")
    if name == "mixtral":
        return "mistral" if content.get("sliding_window") else "llama"
    return {"qwen3_moe": "qwen3", "qwen2_moe": "qwen2"}[name]


def sibling_settings(directory: Path, name: str, dtype: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json` of a model's sibling: what both families share, then `changes`.

    Every value is written, those that the source leaves to its family's defaults too: the sibling's defaults are others.
    """
    settings, raw = settings_of(directory), read_object(directory / CONFIG_FILE)
    family = SPARSE.get(name) or SPARSE_OF[name]
    names = [key for key in (*_SHARED, *family.keeps) if key in settings]
    shared = {key: raw.get(key, settings[key]) if key in _DROPOUT else settings[key] for key in names}
    return {"model_type": name, "architectures": [_CLASSES[name]], "dtype": dtype, **shared, **changes}
