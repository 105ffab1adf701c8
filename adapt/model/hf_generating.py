"""Continuations by the `generate` of a Hugging Face model, which keeps its own cache.

Tokens are chosen here: a logits processor that leaves one token per row, so that the rules and draws are those of every other model
and do not depend on the batch. Nothing of the model's own `generation_config` counts. Shorter rows are padded at their beginning.

Legend: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapt.model.continuing import Growing
from adapt.model.hf import HFModel, import_transformers

_FILLED = 0  # the token of padding, and of rows that are over while others go on


@torch.no_grad()
def continue_by_generate(model: HFModel, rows: Growing, device: torch.device | str = "cpu") -> None:
    """Add to rows until none goes on. All of them go on at first, and each of their beginnings has a token at least."""
    transformers, causal = import_transformers(), model.causal
    width = max(map(len, rows.beginnings))
    ids_BT = torch.tensor([[_FILLED] * (width - len(row)) + list(row) for row in rows.beginnings], device=device)
    is_real_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows.beginnings], device=device)
    plain = {"do_sample": False, "pad_token_id": _FILLED, "use_cache": True}
    driver, own_settings = _Driver(rows), causal.generation_config
    causal.generation_config = transformers.GenerationConfig(**plain)
    try:
        causal.generate(
            ids_BT,
            attention_mask=is_real_BT,
            generation_config=transformers.GenerationConfig(max_new_tokens=max(rows.most), **plain),
            logits_processor=transformers.LogitsProcessorList([driver.choose]),
            stopping_criteria=transformers.StoppingCriteriaList([driver.are_over]),
        )
    finally:
        causal.generation_config = own_settings


class _Driver:
    """What `generate` asks at every token: which one follows, and which rows are over."""

    def __init__(self, rows: Growing) -> None:
        self._rows = rows

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] that leave each row one token."""
        going = torch.tensor(self._rows.going, device=scores.device)
        tokens_B = torch.full((len(scores),), _FILLED, device=scores.device)
        tokens_B[going], _ = self._rows.take(scores[going])
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_B.unsqueeze(-1), 0.0)

    def are_over(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return [B], True for rows that do not go on."""
        over_B = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        over_B[self._rows.going] = False
        return over_B
