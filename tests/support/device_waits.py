"""A stand-in for a CUDA device on the CPU: operations whose result the host would have to wait for raise an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What has as many elements as the data says, or goes to Python as a number.
_NAMES = "nonzero masked_select bincount _local_scalar_dense item is_nonzero equal unique_dim _unique2 unique_consecutive argwhere"
_WAITING = frozenset(getattr(torch.ops.aten, name) for name in _NAMES.split())
_INDEXING = frozenset((torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_))


class Waited(Exception):
    """A CUDA device would have been waited for."""


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _WAITING:
            raise Waited(str(func))
        if packet in _INDEXING and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            raise Waited(f"{func} by a mask")
        if func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            raise Waited(f"{func} without its size")
        return func(*args, **kwargs)


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise `Waited` in the block where a CUDA device would be waited for, in forward and backward.

    `tolist` of a CPU tensor is not dispatched; here it is allowed for fp64, which are the objective's coefficients on the host.
    """
    tolist = Tensor.tolist

    def checked(tensor: Tensor) -> Any:
        if tensor.dtype is not torch.float64:
            raise Waited(f"tolist of {tensor.dtype}")
        return tolist(tensor)

    with monkeypatch.context() as patched, _NoWaiting():
        patched.setattr(Tensor, "tolist", checked)
        yield
