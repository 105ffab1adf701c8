"""Foreign checkpoints as their programs write them, and what their models compute, in plain torch from the reference alone.

Nothing here uses this project: one token at a time, one head at a time, every formula written out.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PREFIX = "language_model."
EXPERT_KEY = "language_model.encoder.layers.{layer}.mlp.deepspeed_moe.experts.deepspeed_experts.{expert}.{part}"


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Sizes and forms of a foreign model. `experts` has one entry per MoE layer, with 1 for a dense layer."""

    experts: tuple[int, ...] = (1, 1)
    n_layers: int = 4
    hidden: int = 24
    heads: int = 3
    vocab_rows: int = 70
    positions: int = 20
    ffn: int = 96
    is_residual: bool = False
    has_network: bool = False
    gelu: str = "tanh"
    eps: float = 1e-5
    mix_over_batch: bool = False

    def count(self, layer: int) -> int:
        return self.experts[layer // 2] if layer % 2 else 1

    @property
    def moe_layers(self) -> list[int]:
        return [layer for layer in range(self.n_layers) if self.count(layer) > 1]


@dataclass
class Weights:
    """The shared tensors by canonical name, and each expert's by (MoE layer from 0, expert)."""

    main: dict[str, Tensor]
    experts: dict[tuple[int, int], dict[str, Tensor]]

    def to(self, dtype: torch.dtype) -> Weights:
        """Round all but the gates, which stay in fp32."""
        main = {name: t if ".gate." in name else t.to(dtype) for name, t in self.main.items()}
        return Weights(main, {key: {n: t.to(dtype) for n, t in parts.items()} for key, parts in self.experts.items()})


def make_weights(foreign: Foreign, seed: int = 0) -> Weights:
    """Draw weights large enough that every part matters, last biases that are never added included."""
    generator = torch.Generator().manual_seed(seed)
    h, f = foreign.hidden, foreign.ffn

    def draw(*shape: int, around: float = 0.0, scale: float = 0.3) -> Tensor:
        return around + scale * torch.randn(shape, generator=generator)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(h, around=1.0), f"{name}.bias": draw(h)}

    def mlp(prefix: str) -> dict[str, Tensor]:
        return {
            f"{prefix}dense_h_to_4h.weight": draw(f, h),
            f"{prefix}dense_h_to_4h.bias": draw(f),
            f"{prefix}dense_4h_to_h.weight": draw(h, f, scale=0.1),
            f"{prefix}dense_4h_to_h.bias": draw(h, scale=1.0),
        }

    main = {
        "embedding.word_embeddings.weight": draw(foreign.vocab_rows, h),
        "embedding.position_embeddings.weight": draw(foreign.positions, h),
    }
    experts = {}
    for layer in range(foreign.n_layers):
        name = f"encoder.layers.{layer}."
        main |= norm(f"{name}input_layernorm") | norm(f"{name}post_attention_layernorm")
        main |= {
            f"{name}self_attention.query_key_value.weight": draw(3 * h, h),
            f"{name}self_attention.query_key_value.bias": draw(3 * h),
            f"{name}self_attention.dense.weight": draw(h, h),
            f"{name}self_attention.dense.bias": draw(h),
        }
        if foreign.count(layer) == 1:
            main |= mlp(f"{name}mlp.")
            continue
        main[f"{name}mlp.deepspeed_moe.gate.wg.weight"] = draw(foreign.count(layer), h, scale=0.5)
        if foreign.is_residual:
            main |= mlp(f"{name}mlp.mlp.")
            main |= {f"{name}mlp.coefficient.weight": draw(2, h), f"{name}mlp.coefficient.bias": draw(2)}
        if foreign.has_network:
            for k in range(6):
                inner = f"{name}mlp.deepspeed_moe.expert_network.{k}."
                main |= norm(f"{inner}norm")
                main |= {f"{inner}ff1.weight": draw(4 * h, h), f"{inner}ff1.bias": draw(4 * h)}
                main |= {f"{inner}ff2.weight": draw(h, 4 * h, scale=0.05), f"{inner}ff2.bias": draw(h, scale=0.1)}
        for expert in range(foreign.count(layer)):
            experts[foreign.moe_layers.index(layer), expert] = mlp("")
    return Weights(main | norm("encoder.final_layernorm"), experts)


def reference_logits(foreign: Foreign, weights: Weights, ids_BT: Tensor) -> Tensor:
    """Compute [B, T, rows] logits, one row and one token at a time."""
    return torch.stack([_row_logits(foreign, weights, ids_T.tolist()) for ids_T in ids_BT])


def _row_logits(foreign: Foreign, weights: Weights, ids: list[int]) -> Tensor:
    w = {name: tensor.float() for name, tensor in weights.main.items()}
    size = foreign.hidden // foreign.heads
    words, positions = w["embedding.word_embeddings.weight"], w["embedding.position_embeddings.weight"]
    x = [words[token] + positions[place] for place, token in enumerate(ids)]

    def norm(v: Tensor, name: str, eps: float = foreign.eps) -> Tensor:
        centred = v - v.mean()
        return centred / torch.sqrt((centred**2).mean() + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    for layer in range(foreign.n_layers):
        name = f"encoder.layers.{layer}."
        rows = [
            w[f"{name}self_attention.query_key_value.weight"] @ norm(v, f"{name}input_layernorm")
            + w[f"{name}self_attention.query_key_value.bias"]
            for v in x
        ]
        heads_of = [row.view(foreign.heads, 3, size) for row in rows]
        for place in reversed(range(len(x))):
            mixed = []
            for head in range(foreign.heads):
                query = heads_of[place][head, 0]
                scores = torch.stack([query @ heads_of[j][head, 1] for j in range(place + 1)]) / size**0.5
                shares = torch.exp(scores - scores.max())
                shares = shares / shares.sum()
                mixed.append(torch.stack([shares[j] * heads_of[j][head, 2] for j in range(place + 1)]).sum(0))
            dense = w[f"{name}self_attention.dense.weight"] @ torch.cat(mixed) + w[f"{name}self_attention.dense.bias"]
            x[place] = x[place] + dense
        x = [v + _feed_forward(foreign, weights, layer, norm(v, f"{name}post_attention_layernorm")) for v in x]
    return torch.stack([words @ norm(v, "encoder.final_layernorm") for v in x])


def _feed_forward(foreign: Foreign, weights: Weights, layer: int, x: Tensor) -> Tensor:
    name = f"encoder.layers.{layer}.mlp."
    w = {key.removeprefix(name): tensor.float() for key, tensor in weights.main.items() if key.startswith(name)}
    if foreign.count(layer) == 1:
        return _mlp(foreign, w, x) + w["dense_4h_to_h.bias"]
    gate = w["deepspeed_moe.gate.wg.weight"] @ x
    probs = torch.exp(gate - gate.max())
    probs = probs / probs.sum()
    chosen = int(probs.argmax())
    expert = weights.experts[foreign.moe_layers.index(layer), chosen]
    out = probs[chosen] * _mlp(foreign, {part: tensor.float() for part, tensor in expert.items()}, x)
    if foreign.has_network:
        deep = out
        for k in range(6):
            inner = f"deepspeed_moe.expert_network.{k}."
            centred = deep - deep.mean()
            normed = centred / torch.sqrt((centred**2).mean() + 1e-5) * w[f"{inner}norm.weight"] + w[f"{inner}norm.bias"]
            hidden = (w[f"{inner}ff1.weight"] @ normed + w[f"{inner}ff1.bias"]).clamp_min(0)
            deep = deep + w[f"{inner}ff2.weight"] @ hidden + w[f"{inner}ff2.bias"]
        out = probs[chosen] * deep + (1 - probs[chosen]) * out
    if foreign.is_residual:
        beside = _mlp(foreign, {key.removeprefix("mlp."): t for key, t in w.items() if key.startswith("mlp.")}, x)
        mix = w["coefficient.weight"] @ x + w["coefficient.bias"]
        mix = torch.ones(2) if foreign.mix_over_batch else torch.exp(mix - mix.max()) / torch.exp(mix - mix.max()).sum()
        out = mix[0] * out + mix[1] * beside
    return out


def _mlp(foreign: Foreign, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the MLP's output without its last bias."""
    inner = w["dense_h_to_4h.weight"] @ x + w["dense_h_to_4h.bias"]
    if foreign.gelu == "erf":
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    else:
        inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return w["dense_4h_to_h.weight"] @ inner


def nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Nest as Megatron does: one level for every part of the name."""
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *outer, leaf = name.split(".")
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        place[leaf] = tensor
    return tree


def module_of(
    weights: Weights, *, is_flat: bool = False, is_older: bool = False, is_outside: bool = False, is_lsoftmax: bool = False
) -> dict[str, Any]:
    """Lay the shared tensors out; `is_outside` puts the expert-residual network beside `language_model` under full names."""
    renamed, outside = {}, {}
    for name, tensor in weights.main.items():
        if is_lsoftmax:
            name = name.replace(".gate.wg.weight", ".gate.wg.weight.weight")
        if is_older:
            name = name.replace("encoder.", "transformer.").replace(".self_attention.", ".attention.")
        if is_outside and "expert_network" in name:
            outside[PREFIX + name] = tensor
        else:
            renamed[name] = tensor
    if is_flat:
        return {**{PREFIX + name: tensor for name, tensor in renamed.items()}, **outside}
    embedding = nested({n.removeprefix("embedding."): t for n, t in renamed.items() if n.startswith("embedding.")})
    body = "transformer" if is_older else "encoder"
    inner = {n.removeprefix(f"{body}."): t for n, t in renamed.items() if n.startswith(f"{body}.")}
    return {"language_model": {"embedding": embedding, body: inner}, **outside}


def write_experts(place: Path, foreign: Foreign, weights: Weights) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for (moe_layer, expert), parts in weights.experts.items():
        layer = foreign.moe_layers[moe_layer]
        state = {EXPERT_KEY.format(layer=layer, expert=expert, part=part): tensor for part, tensor in parts.items()}
        torch.save(state, place / f"layer_{moe_layer}_expert_{expert}_mp_rank_00_model_states.pt")


def pai_config(foreign: Foreign) -> dict[str, Any]:
    """Return config.json of the PAI family with every key written out."""
    return {
        "model_type": "gpt-moe",
        "vocab_size": foreign.vocab_rows,
        "hidden_size": foreign.hidden,
        "ffn_hidden_size": foreign.ffn,
        "intermediate_size": 7,
        "num_hidden_layers": foreign.n_layers,
        "num_attention_heads": foreign.heads,
        "max_position_embeddings": foreign.positions,
        "layernorm_epsilon": foreign.eps,
        "bias_gelu_fusion": foreign.gelu == "tanh",
        "num_experts": list(foreign.experts),
    }


def write_pai(
    place: Path,
    foreign: Foreign,
    weights: Weights,
    config: Mapping[str, Any] | None = None,
    key: str = "module",
    beside: Mapping[str, Any] | None = None,
    **form: bool,
) -> Path:
    """Write a checkpoint in the PAI layout."""
    write_experts(place / "model", foreign, weights)
    inner = place / "model" / "mp_rank_00"
    inner.mkdir(exist_ok=True)
    name = "model_rng.pt" if foreign.moe_layers else "model_optim_rng.pt"
    torch.save({key: module_of(weights, **form), "iteration": 7, **(beside or {})}, inner / name)
    text = json.dumps(pai_config(foreign) if config is None else config)
    (place / "config.json").write_text(text, encoding="utf-8")
    return place


def megatron_args(foreign: Foreign, **changes: Any) -> Namespace:
    """Return the arguments of a training run, with a few that no importer asks for."""
    settings = {
        "num_layers": foreign.n_layers,
        "hidden_size": foreign.hidden,
        "ffn_hidden_size": foreign.ffn,
        "num_attention_heads": foreign.heads,
        "kv_channels": foreign.hidden // foreign.heads,
        "max_position_embeddings": foreign.positions,
        "layernorm_epsilon": foreign.eps,
        "bias_gelu_fusion": foreign.gelu == "tanh",
        "num_experts": list(foreign.experts),
        "expert_interval": 2,
        "topk": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "padded_vocab_size": foreign.vocab_rows,
        "params_dtype": torch.float16,
        "data_path": ["corpus"],
        "lr": 1e-4,
    }
    return Namespace(**{**settings, **changes})


def write_megatron(place: Path, foreign: Foreign, weights: Weights, args: Namespace | None = None, tag: str | None = None) -> Path:
    """Write a Megatron-DeepSpeed checkpoint: below `tag` with a file `latest`, or directly into `place`."""
    inner = place if tag is None else place / tag
    write_experts(inner, foreign, weights)
    if tag is not None:
        (place / "latest").write_text(tag, encoding="utf-8")
    content = {
        "module": module_of(weights),
        "optimizer": None,
        "param_shapes": [{"embedding": torch.Size([3, 4])}],
        "checkpoint_version": 3.0,
        "dp_world_size": 8,
        "ds_config": {"train_batch_size": 256},
        "args": megatron_args(foreign) if args is None else args,
    }
    torch.save(content, inner / "mp_rank_00_model_states.pt")
    return place


def ids_of(foreign: Foreign, n_words: int, seed: int = 3, rows: int = 2) -> Tensor:
    return torch.randint(0, n_words, (rows, foreign.positions), generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor) -> None:
    """Demand logits equal to 2e-5 in fp32."""
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
