"""What Megatron-DeepSpeed and the PAI GPT-MoE family call their tensors, and how each of our parameters is made from them.

Theirs is `language_model.{embedding,encoder}.*` (older: `transformer`, `attention`), nested or in flat dotted keys; the canonical
name leaves the outer parts away: `layers.N.self_attention.query_key_value.weight`. Sources: ModelScope's `gpt_moe` (PAI 2022) and
Megatron-DeepSpeed (Microsoft 2022).

Legend: A heads, D head size, H hidden size, R = 3 * A * D rows.
"""

from __future__ import annotations

import re

from torch import Tensor

_OUTER = r"(?:(?:module|model|language_model|moe_state_dict)\.)*"
_EMBEDDING = re.compile(_OUTER + r"(?:embedding\.)?((?:word|position)_embeddings\.weight)")
_BODY = re.compile(_OUTER + r"(?:(?:encoder|transformer)\.)?((?:layers\.\d+|final_layernorm)\..+)")
_EXPERT = re.compile(
    r"(?:.*\.)?deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.((?:dense_h_to_4h|dense_4h_to_h)\.(?:weight|bias))"
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

# Ours -> theirs inside a block; {k} is the layer of the expert-residual network.
_IN_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.qkv": "self_attention.query_key_value",
    "attention.out": "self_attention.dense",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
    "mlp.router": "mlp.deepspeed_moe.gate.wg",
    "mlp.residual_mlp.up": "mlp.mlp.dense_h_to_4h",
    "mlp.residual_mlp.down": "mlp.mlp.dense_4h_to_h",
    "mlp.residual_mix": "mlp.coefficient",
}
_OUTSIDE = {
    "embedding.weight": "word_embeddings.weight",
    "positions.weight": "position_embeddings.weight",
    "final_norm.weight": "final_layernorm.weight",
    "final_norm.bias": "final_layernorm.bias",
}
_NETWORK = {"norm": "norm", "up": "ff1", "down": "ff2"}
EXPERT_PARTS = {
    "up_weight": "dense_h_to_4h.weight",
    "up_bias": "dense_h_to_4h.bias",
    "down_weight": "dense_4h_to_h.weight",
}
LAST_BIAS = "dense_4h_to_h.bias"
WORDS = _OUTSIDE["embedding.weight"]


def canonical(name: str) -> str | None:
    """Return the canonical form of a foreign name; None for what has no place in the layout."""
    if found := _EMBEDDING.fullmatch(name):
        return found.group(1)
    if found := _BODY.fullmatch(name):
        inner = re.sub(r"^(layers\.\d+)\.attention\.", r"\1.self_attention.", found.group(1))
        # L-softmax keeps its linear map one level deeper; at evaluation it is a plain one.
        return inner.replace(".gate.wg.weight.weight", ".gate.wg.weight")
    return None


def expert_part(name: str) -> tuple[int | None, int, str] | None:
    """Split an expert's key into (layer, where the key says it; global expert; part); None if it is no expert's."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    layer = _LAYER.search(name)
    return (int(layer.group(1)) if layer else None, int(found.group(1)), found.group(2))


def foreign_name(name: str) -> str:
    """Return the canonical foreign name of one of our parameters that is not an expert's."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, inner = name.split(".", 2)
    owner, _, leaf = inner.rpartition(".")
    if found := re.fullmatch(r"mlp\.expert_residual\.layers\.(\d+)\.(\w+)", owner):
        return f"layers.{layer}.mlp.deepspeed_moe.expert_network.{found.group(1)}.{_NETWORK[found.group(2)]}.{leaf}"
    return f"layers.{layer}.{_IN_BLOCK[owner]}.{leaf}"


def network_depth(names: set[str]) -> int:
    """Return the depth of the expert-residual network that canonical names speak of (0: there is none)."""
    found = [re.fullmatch(r"layers\.\d+\.mlp\.deepspeed_moe\.expert_network\.(\d+)\..+", name) for name in names]
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


def heads_last(rows_R: Tensor, n_heads: int) -> Tensor:
    """Bring rows from head by head with q, k, v inside a head (theirs) to q, k, v with the heads inside (ours)."""
    inside = rows_R.shape[0] // (3 * n_heads)
    split = rows_R.reshape(n_heads, 3, inside, *rows_R.shape[1:])
    return split.transpose(0, 1).reshape(rows_R.shape)
