"""A model of this project in the form of a Hugging Face directory, which transformers opens without this package.

What is written: the tensors under transformers' names, streamed, routers in fp32 as they are; `config.json`, whose section
`moe_adapt` has this project's own settings, by which every command opens the directory again; the code of `own_in_transformers`;
`generation_config.json`; and a tokenizer that transformers opens without code.

No family that servers know has the layers of the sparse models: layer norms with biases, learned positions, two-layer experts with
biases, and experts in every second block only. Mixtral, OLMoE, Qwen-MoE, PhiMoE and GraniteMoE have rotary positions and gated
experts, Switch and NLLB-MoE are encoder-decoders. Dense models have the layers of GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint import own_in_transformers
from adapt.checkpoint.hf_directory import CONFIG_FILE, OWN_SECTION
from adapt.checkpoint.offload import Verify
from adapt.checkpoint.shard_bytes import read_range
from adapt.checkpoint.shard_format import ByteRange
from adapt.checkpoint.store import OWN_PREFIX, Store, open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import CODE_PATTERN, is_router, load_config, record_sums
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import write_json
from adapt.core.typed import to_plain
from adapt.model.config import Gelu, GPTConfig
from adapt.model.expert_parallel import is_stack
from adapt.text.contract import TextTokenizer
from adapt.text.hf_tokenizer import TOKENIZER_FILE, HFTokenizer
from adapt.text.sentencepiece_json import first_difference, json_bytes, tokenizer_json, tokenizer_settings
from adapt.text.tokenizer import Tokenizer

_ACTIVATIONS = {Gelu.TANH: "gelu_pytorch_tanh", Gelu.ERF: "gelu"}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_MODEL_TYPE = "moe_adapt_gpt"
_CODE = Path(own_in_transformers.__file__).parent
_CLASSES = {
    "AutoConfig": "configuration_moe_adapt.MoEAdaptConfig",
    "AutoModel": "modeling_moe_adapt.MoEAdaptModel",
    "AutoModelForCausalLM": "modeling_moe_adapt.MoEAdaptForCausalLM",
}
_CONTEXT_NAME = "model_max_length"
_SETTINGS_FILE = "tokenizer_config.json"


def refuse_unknown_router(config: GPTConfig) -> None:
    """Raise ConfigError for a router whose rule the written code does not have."""
    from adapt.checkpoint.own_in_transformers.experts_moe_adapt import RULES

    if any(config.expert_counts()) and config.router.name not in RULES:
        raise ConfigError(
            f"export.form=hugging_face: the router '{config.router.name}' has no rule in {_CODE / 'experts_moe_adapt.py'} "
            f"(there are: {', '.join(sorted(RULES))}); add it there, or take export.form=merged"
        )


def write_own_form(directory: Path, source: Path, texts: Iterable[str] = ()) -> None:
    """Write the model and tokenizer of a checkpoint of this project as a Hugging Face directory, tensor by tensor.

    The written tokenizer is compared with the checkpoint's on `texts`.

    Raises:
        ConfigError: the router's rule is unknown to the written code.
        CheckpointError: the checkpoint is damaged, has no tokenizer, or one that a `tokenizer.json` cannot repeat.
    """
    config = load_config(source)
    refuse_unknown_router(config)
    tokenizer = load_tokenizer(source, config)
    store = open_store(source, Verify.ALWAYS)
    _write_tokenizer(directory, tokenizer, config.context_length, texts)
    write_tensors(directory, _tensors(store), has_pages=False)
    write_json(directory / CONFIG_FILE, transformers_config(config, tokenizer, _dtype_of(store)))
    write_json(directory / "generation_config.json", {"transformers_version": "5.0.0", **_marks(tokenizer)})
    for file in sorted(_CODE.glob(CODE_PATTERN)):
        (directory / file.name).write_bytes(file.read_bytes())
    record_sums(directory)


def transformers_config(config: GPTConfig, tokenizer: TextTokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of the `config.json` of a model of this project, for transformers and for this project."""
    return {
        "model_type": _MODEL_TYPE,
        "architectures": ["MoEAdaptForCausalLM"],
        "auto_map": _CLASSES,
        "dtype": _DTYPES[dtype],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": _ACTIVATIONS[config.gelu],
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "experts_by_layer": list(config.expert_counts()),
        "router": to_plain(config.router),
        "is_residual": config.is_residual,
        "expert_residual_layers": config.expert_residual_layers,
        "even_routing": config.even_routing,
        "domain": 0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **_marks(tokenizer),
        OWN_SECTION: to_plain(config),
    }


def family_note(config: GPTConfig) -> str:
    """Return in a sentence whether servers know the family that a model belongs to."""
    if not any(config.expert_counts()):
        return (
            "Its layers are those of GPT-2 (dense, pre-norm, learned positions, tied output); it is written as a class of its own."
        )
    return (
        "No family that servers know (Mixtral, OLMoE, Qwen-MoE and the like) has its layers: those have rotary positions, RMS "
        "norms and gated experts without biases. It runs by its own code, in transformers and what is built on it."
    )


def _marks(tokenizer: TextTokenizer) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _dtype_of(store: Store) -> torch.dtype:
    """Return the format of the weights, which those of the routers may be finer than.

    Raises:
        CheckpointError: transformers would load them in a format that they do not have.
    """
    found = {place.dtype for name, place in store.tensors.items() if not is_router(name)}
    if len(found) != 1 or not found <= set(_DTYPES):
        names = ", ".join(sorted(map(str, found)))
        raise CheckpointError(
            f"{store.directory}: its weights are {names}; in the form of transformers all are float32, bfloat16 or float16"
        )
    return found.pop()


def _tensors(store: Store) -> Iterator[tuple[str, AnyTensor]]:
    """Yield tensors under transformers' names, stacked experts one by one."""
    for name, place in sorted(store.tensors.items(), key=lambda item: (item[1].file.name, item[1].offset)):
        if is_stack(name) and len(place.shape) > 1:
            yield OWN_PREFIX + name, PartedTensor(shape=place.shape, dtype=place.dtype, parts=partial(_rows_of, place))
        else:
            yield OWN_PREFIX + name, read_range(place)


def _rows_of(place: ByteRange) -> Iterator[torch.Tensor]:
    return (read_range(place.row(index)) for index in range(place.shape[0]))


def _write_tokenizer(directory: Path, tokenizer: TextTokenizer, context_length: int, texts: Iterable[str]) -> None:
    """Write a tokenizer for transformers, and the one that this project opens.

    Raises:
        CheckpointError: a text gets other tokens from what would be written.
    """
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save(directory)
        (directory / _SETTINGS_FILE).write_bytes(json_bytes(_settings_of(tokenizer, context_length)))
        return
    assert isinstance(tokenizer, Tokenizer), "a tokenizer is a SentencePiece model or a tokenizer.json"
    described, settings = tokenizer_json(tokenizer), tokenizer_settings(tokenizer, context_length)
    written = HFTokenizer(
        {TOKENIZER_FILE: json_bytes(described), _SETTINGS_FILE: json_bytes(settings)}, {}, TOKENIZER_FILE, is_recorded=True
    )
    text = first_difference(tokenizer, written.encode, texts)
    if text is not None:
        raise CheckpointError(
            f"{tokenizer.source}: a {TOKENIZER_FILE} cuts {text[:40]!r} into other tokens than this model, which is no BPE, or "
            "changes texts before it cuts them; take export.form=merged"
        )
    written.save(directory)
    tokenizer.save(directory)


def _settings_of(tokenizer: HFTokenizer, context_length: int) -> dict[str, Any]:
    """Return the settings that transformers needs next to a `tokenizer.json`, for a model that it does not know."""
    settings = json.loads(tokenizer.files.get(_SETTINGS_FILE, b"{}"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, _CONTEXT_NAME: context_length}
    for role, number in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id)):
        settings.setdefault(f"{role}_token", tokenizer.pieces([number])[0])
    return settings
