"""Shared fixtures: a tiny tokenizer and tiny models, made once per session from the shipped demo text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "pipelines" / "demo"
VOCAB = 2400


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = (DEMO / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    return train_tokenizer(lines, TokenizerConfig(vocab_size=VOCAB), "demo corpus")


def tiny_config(experts: list[int] | None = None, **changes: object) -> GPTConfig:
    """Return the settings of a model that runs in milliseconds."""
    sizes: dict[str, object] = {
        "n_layers": 4,
        "hidden_size": 32,
        "n_heads": 2,
        "context_length": 96,
        "vocab_size": VOCAB,
        "experts": [4] if experts is None else experts,
        "is_residual": True,
        "init_std": 0.1,
    }
    return GPTConfig(**{**sizes, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def sparse_model() -> GPT:
    return materialize(GPT(tiny_config()), seed=1).eval()


@pytest.fixture(scope="session")
def dense_model() -> GPT:
    return materialize(GPT(tiny_config(experts=[0])), seed=1).eval()
