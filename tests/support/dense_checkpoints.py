"""Dense checkpoints of this project, in which nothing is at its first value."""

from __future__ import annotations

from pathlib import Path

import torch

from adapt.checkpoint.weights import save_model
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.text.tokenizer import Tokenizer
from tests.support.tiny_models import DEMO, tiny_config


def make_dense(place: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Write a dense checkpoint with the tokenizer of the shipped base."""
    place.mkdir(exist_ok=True)
    tokenizer = Tokenizer.load(DEMO / "base")
    config = tiny_config([0], is_residual=False, vocab_size=tokenizer.vocab_size, **changes)
    model, generator = materialize(GPT(config), seed=3), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, tensor in named_state(model):
            tensor.add_(torch.empty_like(tensor).normal_(0.0, 0.15, generator=generator))
    save_model(place, config, ((name, tensor.to(dtype)) for name, tensor in named_state(model)), tokenizer)
    return place
