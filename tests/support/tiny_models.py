"""Sizes and settings of the models and data that tests use."""

from __future__ import annotations

from pathlib import Path

from adapt.model.gpt import GPTConfig

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "pipelines" / "demo"
VOCAB = 2400


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
