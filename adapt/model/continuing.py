"""Continuations of rows of tokens: by a base on a kept past, whatever chooses the next token and says when a row is over.

Rows that go on together cost little more than one. They need not have one length: shorter ones are padded at their end, what
follows does not see the padding, and positions are counted by row. A row that is over leaves the batch. A greedy tie goes to the
token of the smallest number.

Legend: B rows, T positions, P positions of the past, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapt.model.inputs import CausalBase, ModelInputs, Past


@dataclass(kw_only=True)
class Growing:
    """Rows under way: their beginnings, the tokens added to each, and which of them go on.

    `choose` returns the next tokens of the rows that go on from their logits. `most` says per row how many tokens may be added.
    `is_over` is asked after each token of a row, by the row's number.
    """

    beginnings: Sequence[Sequence[int]]
    most: Sequence[int]
    choose: Callable[[Tensor, Growing], Tensor]
    is_over: Callable[[int, Sequence[int]], bool] = lambda row, added: False
    added: list[list[int]] = field(init=False)
    going: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.added = [[] for _ in self.beginnings]
        self.going = [row for row, most in enumerate(self.most) if most > 0]

    def so_far(self) -> list[list[int]]:
        """Return all tokens of each row that goes on."""
        return [[*self.beginnings[row], *self.added[row]] for row in self.going]

    def take(self, logits_BV: Tensor) -> tuple[Tensor, list[int]]:
        """Add a token to each row that goes on; return these tokens, and which places of the batch go on after them."""
        tokens_B = self.choose(logits_BV, self)
        stay = []
        for place, (row, token) in enumerate(zip(self.going, tokens_B.tolist(), strict=True)):
            self.added[row].append(token)
            is_over = self.is_over(row, self.added[row])
            if not is_over and len(self.added[row]) < self.most[row]:
                stay.append(place)
        self.going = [self.going[place] for place in stay]
        return tokens_B, stay


@torch.no_grad()
def continue_rows(model: CausalBase, rows: Growing, device: torch.device | str = "cpu") -> None:
    """Add to rows until none goes on. Each of their beginnings has a token at least."""
    places = torch.tensor(rows.going, dtype=torch.int64)
    if not rows.going:
        return
    lengths_B = torch.tensor([len(row) for row in rows.beginnings])[places]
    width = int(lengths_B.max())
    ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows.so_far()], dtype=torch.int64)
    lengths_B, ids_BT = lengths_B.to(device), ids_BT.to(device)
    output = model(_first_inputs(ids_BT, lengths_B))
    logits_BV = model.logits(output.hidden_BTH[torch.arange(len(ids_BT), device=device), lengths_B - 1])
    past, is_seen_BP = _kept(output.past), torch.arange(width, device=device) < lengths_B.unsqueeze(1)
    while True:
        tokens_B, stay = rows.take(logits_BV)
        if not stay:
            return
        if len(stay) < len(tokens_B):
            kept_B = torch.tensor(stay, device=device)
            tokens_B, lengths_B, is_seen_BP = tokens_B[kept_B], lengths_B[kept_B], is_seen_BP[kept_B]
            past = Past(layers=tuple((keys[kept_B], values[kept_B]) for keys, values in past.layers))
        is_seen_BP = torch.cat([is_seen_BP, torch.ones_like(is_seen_BP[:, :1])], dim=1)
        output = model(_further_inputs(tokens_B, lengths_B, is_seen_BP, past))
        logits_BV, past, lengths_B = model.logits(output.hidden_BTH[:, -1]), _kept(output.past), lengths_B + 1


def greedy_tokens(
    model: CausalBase, beginnings: Sequence[Sequence[int]], n_tokens: int, device: torch.device | str = "cpu"
) -> list[list[int]]:
    """Return the `n_tokens` likeliest tokens after each beginning, fewer where the context ends."""
    return _by_length(model, beginnings, n_tokens, device, lambda logits_BV, _: logits_BV.argmax(dim=-1))


def drawn_tokens(
    model: CausalBase, beginnings: Sequence[Sequence[int]], n_tokens: int, seed: int, device: torch.device | str = "cpu"
) -> list[list[int]]:
    """Return `n_tokens` tokens drawn after each beginning, fewer where the context ends.

    Draws follow from the seed, all beginnings and the machine.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(logits_BV: Tensor, _: Growing) -> Tensor:
        probs_BV = logits_BV.float().softmax(dim=-1).cpu()
        return torch.multinomial(probs_BV, 1, generator=generator)[:, 0].to(logits_BV.device)

    return _by_length(model, beginnings, n_tokens, device, draw)


def _by_length(
    model: CausalBase,
    beginnings: Sequence[Sequence[int]],
    n_tokens: int,
    device: torch.device | str,
    choose: Callable[[Tensor, Growing], Tensor],
) -> list[list[int]]:
    """Continue the beginnings of each length together, so that none is padded."""
    found: list[list[int]] = [[] for _ in beginnings]
    by_length: dict[int, list[int]] = {}
    for place, beginning in enumerate(beginnings):
        by_length.setdefault(len(beginning), []).append(place)
    for length, places in by_length.items():
        most = [min(n_tokens, model.context_length - length)] * len(places)
        rows = Growing(beginnings=[beginnings[place] for place in places], most=most, choose=choose)
        continue_rows(model, rows, device)
        for place, added in zip(places, rows.added, strict=True):
            found[place] = added
    return found


def _kept(past: Past | None) -> Past:
    assert past is not None, "a base keeps its past when asked to"
    return past


def _first_inputs(ids_BT: Tensor, lengths_B: Tensor) -> ModelInputs:
    positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    is_real_BT = positions_T < lengths_B.unsqueeze(1)
    return ModelInputs(
        ids_BT=ids_BT,
        positions_BT=positions_T * is_real_BT,
        documents_BT=is_real_BT.long(),
        domains_BT=torch.zeros_like(ids_BT),
        is_packed=False,
        keeps_past=True,
    )


def _further_inputs(tokens_B: Tensor, lengths_B: Tensor, is_seen_BP: Tensor, past: Past) -> ModelInputs:
    """Return the inputs of one more token a row; `is_seen_BP` says which positions of the row so far are real, it included."""
    ids_BT = tokens_B.unsqueeze(1)
    return ModelInputs(
        ids_BT=ids_BT,
        positions_BT=lengths_B.unsqueeze(1),
        documents_BT=torch.ones_like(ids_BT),
        domains_BT=torch.zeros_like(ids_BT),
        mask_BSW=is_seen_BP.unsqueeze(1),
        is_packed=False,
        past=past,
        keeps_past=True,
    )
