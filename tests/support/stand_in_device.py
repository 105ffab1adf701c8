"""A device for tests that is none: tensors whose data lies on the CPU, that say they are elsewhere, and that refuse to be mixed.

What CUDA refuses is refused here too: an operation over tensors of both places raises `MixedDevices`, unless it copies from one to
the other, or works element by element and those on the CPU are single numbers. Numbers can be read (`item`, `tolist`), as on CUDA,
which waits for them; `numpy` cannot be had. Operations run on the CPU's kernels, so that results can be held against the CPU's own,
forward and backward. The name of the device is torch's `meta`, the only one without data that every build knows.

    with stand_in_device():
        model, batch = model.to(DEVICE), batch.to(DEVICE)
        loss(model, batch).backward()
    gradient = on_the_cpu(parameter.grad)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")
_CROSSING = frozenset((torch.ops.aten._to_copy, torch.ops.aten.copy_))


class MixedDevices(RuntimeError):
    """CUDA would say: expected all tensors to be on the same device."""


class Elsewhere(Tensor):
    """A tensor that says it is on `DEVICE`; `data_here` is what it holds."""

    data_here: Tensor

    @staticmethod
    def __new__(cls, data_here: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            data_here.shape,
            strides=data_here.stride(),
            storage_offset=data_here.storage_offset(),
            dtype=data_here.dtype,
            device=DEVICE,
        )
        made.data_here = data_here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.data_here.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of the stand-in device to numpy; use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Elsewhere({self.data_here!r})"


@contextmanager
def stand_in_device() -> Iterator[torch.device]:
    """Let `DEVICE` be a device that computes: what is made there or moved there holds data."""
    with _Place():
        yield DEVICE


def on_the_cpu(tensor: Tensor) -> Tensor:
    """Return the data of a tensor that says it is elsewhere; the tensor itself if it does not."""
    return tensor.data_here if isinstance(tensor, Elsewhere) else tensor.detach()


class _Place(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and let its results be where they would be."""
    tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    elsewhere = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    _refuse_mixing(func, tensors, len(elsewhere))
    is_elsewhere = bool(elsewhere)
    if kwargs.get("device") is not None:
        is_elsewhere = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_data_here, args), **tree_map(_data_here, kwargs))
    # What is written in place, or given out as it came in, stays the tensor that it was.
    known = {id(tensor.data_here): tensor for tensor in elsewhere}

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in known:
            return known[id(leaf)]
        return Elsewhere(leaf) if is_elsewhere else leaf

    if func.overloadpacket is torch.ops.aten._to_copy and any(found is _data_here(tensor) for tensor in tensors):
        found = found.clone()  # a copy to another device is never the same memory
    return tree_map(placed, found)


def _refuse_mixing(func: Any, tensors: list[Tensor], n_elsewhere: int) -> None:
    if not n_elsewhere or n_elsewhere == len(tensors) or func.overloadpacket in _CROSSING:
        return
    is_elementwise = torch.Tag.pointwise in func.tags
    strange = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and (tensor.dim() or not is_elementwise)]
    if strange:
        raise MixedDevices(f"{func}: {len(strange)} of {len(tensors)} tensors are on the CPU, the others on the device")


def _data_here(leaf: Any) -> Any:
    return leaf.data_here if isinstance(leaf, Elsewhere) else leaf
