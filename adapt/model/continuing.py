"""Continuations of a text by a base: its likeliest tokens, or tokens drawn from its own distribution.

Beginnings of one length go through the model together, on a kept past, so that many cost little more than one. A greedy tie goes to
the token of the smallest number. Draws follow from the seed, the beginnings and the machine.

Legend: B rows, P positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapt.model.inputs import CausalBase, ModelInputs, Past

_Choose = Callable[[Tensor], Tensor]


def greedy_tokens(
    model: CausalBase, beginnings: Sequence[Sequence[int]], n_tokens: int, device: torch.device | str = "cpu"
) -> list[list[int]]:
    """Return the `n_tokens` likeliest tokens after each beginning, fewer where the context ends."""
    return _continued(model, beginnings, n_tokens, device, lambda logits_BV: logits_BV.argmax(dim=-1))


def drawn_tokens(
    model: CausalBase, beginnings: Sequence[Sequence[int]], n_tokens: int, seed: int, device: torch.device | str = "cpu"
) -> list[list[int]]:
    """Return `n_tokens` tokens drawn after each beginning, fewer where the context ends."""
    generator = torch.Generator().manual_seed(seed)

    def draw(logits_BV: Tensor) -> Tensor:
        probs_BV = logits_BV.float().softmax(dim=-1).cpu()
        return torch.multinomial(probs_BV, 1, generator=generator)[:, 0].to(logits_BV.device)

    return _continued(model, beginnings, n_tokens, device, draw)


@torch.no_grad()
def _continued(
    model: CausalBase, beginnings: Sequence[Sequence[int]], n_tokens: int, device: torch.device | str, choose: _Choose
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in beginnings]
    by_length: dict[int, list[int]] = {}
    for place, beginning in enumerate(beginnings):
        by_length.setdefault(len(beginning), []).append(place)
    for length, places in by_length.items():
        ids_BT = torch.tensor([list(beginnings[place]) for place in places], dtype=torch.int64, device=device)
        past: Past | None = None
        for _ in range(min(n_tokens, model.context_length - length)):
            output = model(_inputs(ids_BT, past))
            past = output.past
            assert past is not None, "a base keeps its past when asked to"
            ids_BT = choose(model.logits(output.hidden_BTH[:, -1])).unsqueeze(1)
            for place, token in zip(places, ids_BT[:, 0].tolist(), strict=True):
                found[place].append(token)
    return found


def _inputs(ids_BT: Tensor, past: Past | None) -> ModelInputs:
    rows, length = ids_BT.shape
    done = 0 if past is None else len(past)
    mask_BSW = None if past is None else torch.ones(rows, length, done + length, dtype=torch.bool, device=ids_BT.device)
    return ModelInputs(
        ids_BT=ids_BT,
        positions_BT=torch.arange(done, done + length, device=ids_BT.device).repeat(rows, 1),
        documents_BT=torch.ones_like(ids_BT),
        domains_BT=torch.zeros_like(ids_BT),
        mask_BSW=mask_BSW,
        is_packed=False,
        past=past,
        keeps_past=True,
    )
