"""The ranks that share experts, over torch.distributed: gloo on CPU, NCCL on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


class GroupPeers:
    """The ranks of one process group as a layer's peers; `twins` own the same experts as this rank (absent: only this one)."""

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
