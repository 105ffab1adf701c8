"""Opening a checkpoint for scoring: model, tokenizer and a `Scorer` from one directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.weights import load_config, load_model, load_tokenizer
from adapt.core.precision import Precision
from adapt.model.inputs import CausalBase
from adapt.scoring.layout import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.contract import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """A loaded checkpoint, ready to score."""

    model: CausalBase
    tokenizer: TextTokenizer
    scorer: TreeScorer


def open_checkpoint(directory: Path, scorer: ScorerConfig) -> OpenCheckpoint:
    """Load a checkpoint directory (an artifact with weights, an export, or a Hugging Face directory) onto the GPU if there is one.

    Raises:
        CheckpointError: it is incomplete or damaged, or its tokenizer is another model's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if scorer.precision is Precision.BF16 else None
    # A tokenizer that is missing or another model's is refused before a large model is read; a foreign one needs its model.
    own = None if is_hf_directory(directory) else load_tokenizer(directory, load_config(directory))
    model = load_model(directory, device=device, dtype=dtype)
    tokenizer = load_tokenizer(directory, model) if own is None else own
    return OpenCheckpoint(model=model, tokenizer=tokenizer, scorer=TreeScorer(model, scorer, device))
