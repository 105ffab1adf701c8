"""How tokens travel to the ranks that own their experts, and back: an all-to-all of uneven sizes, differentiable.

Legend: K routed pairs sorted by expert, A arrived rows, P ranks that share the experts, L experts of one rank, E = P x L experts,
H hidden size.

Ranks first tell each other how many rows each expert gets, so nothing is padded and no rank computes what another one sends
(ranks that disagree on a capacity wait for each other for ever). The backward pass sends the gradients along the same ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class ExpertShare:
    """Which experts of every layer a rank owns: the `index`-th of `of` slices of equal size."""

    index: int = 0
    of: int = 1

    def slice_of(self, n_experts: int) -> slice:
        size = n_experts // self.of
        return slice(self.index * size, (self.index + 1) * size)


class Peers(Protocol):
    """The ranks that share a layer's experts, in the order of what they own."""

    def exchange(self, received: Tensor, sent: Tensor, received_P: Sequence[int], sent_P: Sequence[int]) -> None:
        """Send the next `sent_P[p]` rows of `sent` to rank p, and fill `received` with `received_P[p]` rows from rank p."""
        ...


class GroupPeers:
    """The ranks of one process group (gloo on CPU, NCCL on CUDA) as a layer's peers.

    `twins` own the same experts as this rank (absent: only this one).
    """

    def __init__(self, group: ProcessGroup, twins: ProcessGroup | None = None) -> None:
        self._group = group
        self._size = torch.distributed.get_world_size(group)
        self._twins = twins
        self.n_twins = 1 if twins is None else torch.distributed.get_world_size(twins)

    def exchange(self, received: Tensor, sent: Tensor, received_P: Sequence[int], sent_P: Sequence[int]) -> None:
        torch.distributed.all_to_all_single(received, sent, list(received_P), list(sent_P), group=self._group)

    def joined(self, part: Tensor) -> Tensor:
        """Return every rank's part, one after another; a collective."""
        whole = part.new_empty(len(part) * self._size, *part.shape[1:])
        torch.distributed.all_gather(list(whole.chunk(self._size)), part.contiguous(), group=self._group)
        return whole

    def summed_over_twins(self, own: Tensor) -> Tensor:
        """Return the sum of the twins' tensors; a collective."""
        whole = own.clone()
        if self._twins is not None:
            torch.distributed.all_reduce(whole, group=self._twins)
        return whole


def run_at_owners(x_KH: Tensor, counts_E: Tensor, peers: Peers, n_peers: int, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Send rows sorted by expert to the experts' owners, `run` what arrives (rows by expert, and their counts), bring it back."""
    sent_PL = counts_E.view(n_peers, -1)
    arrived_PL = torch.empty_like(sent_PL)
    peers.exchange(arrived_PL, sent_PL, [1] * n_peers, [1] * n_peers)
    sent_P, arrived_P = sent_PL.sum(1).tolist(), arrived_PL.sum(1).tolist()
    x_AH = _Exchange.apply(x_KH, peers, arrived_P, sent_P)
    # What arrives is sorted by sender and then by expert; experts want all their rows together.
    n_local = sent_PL.shape[1]
    expert_A = torch.arange(n_local, device=x_KH.device).repeat(n_peers).repeat_interleave(arrived_PL.flatten())
    by_expert_A = expert_A.argsort(stable=True)
    y_AH = run(x_AH[by_expert_A], arrived_PL.sum(0))
    return _Exchange.apply(y_AH[by_expert_A.argsort()], peers, sent_P, arrived_P)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, peers: Peers, received_P: list[int], sent_P: list[int]) -> Tensor:
        ctx.peers, ctx.received_P, ctx.sent_P = peers, received_P, sent_P
        received = rows.new_empty(sum(received_P), *rows.shape[1:])
        peers.exchange(received, rows.contiguous(), received_P, sent_P)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        returned = grads[0].new_empty(sum(ctx.sent_P), *grads[0].shape[1:])
        ctx.peers.exchange(returned, grads[0].contiguous(), ctx.sent_P, ctx.received_P)
        return returned, None, None, None
