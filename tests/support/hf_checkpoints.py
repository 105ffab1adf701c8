"""Tiny random Hugging Face checkpoints, made by transformers and tokenizers themselves, as users would have them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_models import DEMO

START, UNKNOWN = "<|endoftext|>", "<unk>"
BYTE_LEVEL, BYTE_LEVEL_SPACED, PREPENDED, METASPACE = "byte level", "byte level, spaced", "prepended", "metaspace"
TOKENIZERS = (BYTE_LEVEL, BYTE_LEVEL_SPACED, PREPENDED, METASPACE)
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": False}
_LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 0, "n_shared_experts": 1, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 16, "head_dim": 8, "mlp_only_layers": []},
    "qwen2_moe": {**_EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "olmoe": {**_EXPERTS, "intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 96, "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 96, "final_logit_softcapping": 3.0},
    "glm4": {"head_dim": 8},
    "olmo3": {"sliding_window": 96},
    "smollm3": {"no_rope_layer_interval": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 96},
    "deepseek_v2": _LATENT | {"topk_method": "group_limited_greedy", "norm_topk_prob": False},
    "deepseek_v3": _LATENT | {"norm_topk_prob": True},
    "glm4_moe": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16, "head_dim": 8,
        "first_k_dense_replace": 0, "n_shared_experts": 1, "use_qk_norm": True,
    },
}  # fmt: skip


def tiny_hf_config(family: str, vocab_size: int, **changes: Any) -> Any:
    """Return a family's configuration at a size that runs in milliseconds."""
    sizes = {**_SIZES, **_OF_FAMILY.get(family, {}), "vocab_size": vocab_size, **changes}
    return AutoConfig.for_model(family, **sizes)


def make_model(place: Path, family: str, vocab_size: int, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Write a random model as transformers does, without a tokenizer."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_hf_config(family, vocab_size, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms that do something, if they are read
            if name.endswith(("bias", "sinks")) or "norm" in name or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(place, max_shard_size=max_shard_size)
    return place


def make_model_in(place: Path, family: str, vocab_size: int, dtype: torch.dtype, **changes: Any) -> Path:
    """Write a random model whose files are in a number format."""
    made = make_model(place, family, vocab_size, **changes)
    for file in made.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return made


@lru_cache
def tokenizer_text(kind: str, vocab_size: int = 1400) -> str:
    """Return a `tokenizer.json` trained on the demo text: byte-level BPE (Qwen, OLMo) or BPE with byte fallback (Llama 2)."""
    lines = (DEMO / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    if kind in (BYTE_LEVEL, BYTE_LEVEL_SPACED):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == BYTE_LEVEL_SPACED)
        made.decoder = decoders.ByteLevel()
        special, alphabet = [START], pre_tokenizers.ByteLevel.alphabet()
    else:
        made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
        if kind == METASPACE:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(parts)
        special, alphabet = [UNKNOWN, "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], ["▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=16
    )
    made.train_from_iterator(lines, trainer)
    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(described, ensure_ascii=False)


def add_tokenizer(place: Path, kind: str) -> Path:
    """Write a tokenizer and its settings beside a model."""
    (place / "tokenizer.json").write_text(tokenizer_text(kind), encoding="utf-8")
    settings: dict[str, Any] = {"eos_token": START, "bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    if kind in (PREPENDED, METASPACE):
        settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": UNKNOWN}
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return place


def make_checkpoint(place: Path, family: str, kind: str = BYTE_LEVEL, **changes: Any) -> Path:
    """Write a model with a tokenizer; the model has a few rows more than there are tokens, as published ones do."""
    size = len(json.loads(tokenizer_text(kind))["model"]["vocab"])
    return add_tokenizer(make_model(place, family, size + 5, **changes), kind)
