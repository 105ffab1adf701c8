"""Random Llama-like Hugging Face directories, for benchmarks of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.hf_directory import CONFIG_FILE
from adapt.checkpoint.store_writer import write_tensors
from adapt.core.json_files import write_json
from adapt.model.hf import frame_of


def llama_settings(hidden: int, layers: int, intermediate: int, vocab: int, tokens: int) -> dict[str, Any]:
    """Return a configuration with heads of 64 and untied embeddings."""
    heads = max(hidden // 64, 1)
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": tokens,
    }


def write_random_llama(place: Path, settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a model with random weights in a format, without a tokenizer."""
    place.mkdir()
    write_json(place / CONFIG_FILE, settings)
    frame, random = frame_of(place), torch.Generator().manual_seed(0)
    weights = ((name, (torch.randn(p.shape, generator=random) * 0.02).to(dtype)) for name, p in frame.named_parameters())
    write_tensors(place, frame.checkpoint_tensors(weights), has_pages=False)
