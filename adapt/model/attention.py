"""Causal self-attention over packed rows.

Legend: B rows, T positions, A heads, D head size, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.inputs import ModelInputs


def attention_mask(inputs: ModelInputs) -> Tensor | None:
    """Return a [B, 1, T, T] mask (True: may attend), or None where plain causal attention says it all.

    Without packing, padding stands at a row's end, where causal attention keeps every real token from seeing it.
    """
    if inputs.mask_BTT is not None:
        return inputs.mask_BTT.unsqueeze(1)
    if not inputs.is_packed:
        return None
    documents = inputs.documents_BT
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (same & causal).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head attention with one projection for query, key and value."""

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BTH: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, hidden = x_BTH.shape
        qkv = self.qkv(x_BTH).view(batch, length, 3, self.n_heads, hidden // self.n_heads)
        q_BATD, k_BATD, v_BATD = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q_BATD, k_BATD, v_BATD, attn_mask=mask, is_causal=mask is None)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
