"""The rules by which a next token is chosen from logits, one function each.

Their order is that of transformers: repetition penalty, temperature, top k, top p, draw. A draw needs one number in [0, 1) per row,
which is a function of the row's key and of how many tokens it has so far: it does not depend on the other rows.

Sources: Keskar et al. 2019 (arXiv:1909.05858, section 4.1) for the penalty, Fan et al. 2018 (arXiv:1805.04833) for top k, Holtzman
et al. 2020 (arXiv:1904.09751) for top p.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapt.model.hashing import mixed, uniform
from adapt.model.sampling_config import SamplingConfig

_SALT = 0x5A


def penalized(logits_BV: Tensor, rows: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Divide the positive logits of tokens that stand in a row by `penalty`, and multiply the negative ones by it."""
    found_BV = logits_BV.clone()
    for logits_V, row in zip(found_BV, rows, strict=True):
        seen = torch.tensor(sorted(set(row)), dtype=torch.int64, device=logits_V.device)
        values = logits_V[seen]
        logits_V[seen] = torch.where(values < 0, values * penalty, values / penalty)
    return found_BV


def among_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Return logits with -inf for all tokens below the k-th largest; those level with it stay."""
    least_B1 = logits_BV.topk(min(k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def among_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Return logits with -inf for the tokens that follow, by falling probability, once the ones before have `p`.

    The likeliest token always stays.
    """
    rising, order_BV = logits_BV.sort(dim=-1)
    is_out = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    is_out[:, -1] = False
    return logits_BV.masked_fill(is_out.scatter(-1, order_BV, is_out), -torch.inf)


def drawn(logits_BV: Tensor, numbers_B: Tensor) -> Tensor:
    """Return one token per row: the first in the vocabulary at which the sum of probabilities exceeds the row's number."""
    reached_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    wanted_B1 = numbers_B.to(reached_BV.device).double().unsqueeze(-1) * reached_BV[:, -1:]
    return torch.searchsorted(reached_BV, wanted_B1, right=True).squeeze(-1)


def next_tokens(logits_BV: Tensor, rows: Sequence[Sequence[int]], keys_B: Tensor, step: int, config: SamplingConfig) -> Tensor:
    """Return the next token of each row, int64 [B], where `rows` are the tokens so far, prompts included.

    `keys_B` (int64) tell rows apart where tokens are drawn; `step` counts the tokens that were added before.
    """
    logits_BV = logits_BV.float()
    if config.repetition_penalty != 1:
        logits_BV = penalized(logits_BV, rows, config.repetition_penalty)
    if config.temperature is None:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV / config.temperature
    if config.top_k is not None:
        logits_BV = among_top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = among_top_p(logits_BV, config.top_p)
    numbers_B = uniform(mixed(keys_B, _SALT) + step, 1)[:, 0]
    return drawn(logits_BV, numbers_B)
