"""The training step that one writes without this project: a dense GPT in plain PyTorch, through `torch.compile`.

LayerNorm before attention and MLP, learned positions, tied output, fused attention, mean cross-entropy over every token, gradients
clipped, torch's fused AdamW. Weights are in fp32; in bf16 the forward pass runs under autocast, as usual on one device. Rows are
full: no padding, no borders of documents, no ledger of the loss, no held-out rows.

Legend: B rows, T tokens of a row, H hidden size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.core.precision import Precision
from adapt.model.config import GPTConfig
from adapt.train.optimizer_config import OptimizerConfig

COMPILED, EAGER = "compiled", "eager, no C++ compiler here"


class _PlainBlock(nn.Module):
    def __init__(self, sizes: GPTConfig) -> None:
        super().__init__()
        hidden = sizes.hidden_size
        self.n_heads = sizes.n_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.attended = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, sizes.ffn_width), nn.Linear(sizes.ffn_width, hidden)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        rows, tokens, hidden = hidden_BTH.shape
        heads = self.qkv(self.attention_norm(hidden_BTH)).view(rows, tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden_BTH = hidden_BTH + self.attended(attended.transpose(1, 2).reshape(rows, tokens, hidden))
        width = self.up(self.mlp_norm(hidden_BTH))
        return hidden_BTH + self.down(functional.gelu(width, approximate="tanh"))


class PlainGPT(nn.Module):
    """A dense GPT of a configuration's sizes."""

    def __init__(self, sizes: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.positions = nn.Embedding(sizes.context_length, sizes.hidden_size)
        self.blocks = nn.ModuleList(_PlainBlock(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.LayerNorm(sizes.hidden_size)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=sizes.init_std)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of each token after the first."""
        hidden_BTH = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            hidden_BTH = block(hidden_BTH)
        logits = functional.linear(self.norm(hidden_BTH)[:, :-1], self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def plain_step(sizes: GPTConfig, rows: int, precision: Precision, settings: OptimizerConfig) -> tuple[Callable[[], object], str]:
    """Return a whole step on random full rows (forward, backward, clipping, AdamW), and whether it is compiled."""
    torch.manual_seed(0)
    model = PlainGPT(sizes)
    how = COMPILED if any(map(shutil.which, ("g++", "clang++", "c++"))) else EAGER
    run = torch.compile(model) if how == COMPILED else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=settings.weight_decay, fused=True)
    ids_BT = torch.randint(0, sizes.vocab_size, (rows, sizes.context_length))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision is Precision.BF16 else nullcontext():
            loss = run(ids_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step, how
