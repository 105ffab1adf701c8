"""Large tensors whose bytes lie in files without a name, in place of memory.

Libraries make tensors in memory. In a block of `FreshTensors` those that are new and large get their bytes from elsewhere: from a
file of their own (`TensorFiles`), or from a buffer that one call after another uses (`in_buffer`). Values stay the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.train.scratch_file import ScratchFile

LEAST_BYTES = 1 << 20  # smaller tensors stay in memory
_ATEN = torch.ops.aten
_BY_SIZE = {_ATEN.empty.memory_format, _ATEN.zeros.default}
_BY_EXAMPLE = {_ATEN.empty_like.default, _ATEN.zeros_like.default, _ATEN.clone.default, _ATEN._to_copy.default}
_ZEROS = {_ATEN.zeros.default, _ATEN.zeros_like.default}
_COPIES = {_ATEN.clone.default, _ATEN._to_copy.default}


class TensorFiles:
    """Makes tensors in files: `place` says where and how they are named, `wish` and `remedy` what a full disk's message says.

    A tensor's file lives as long as the tensor.
    """

    def __init__(self, place: Path, wish: str, remedy: str) -> None:
        self._place, self._wish, self._remedy = place, wish, remedy
        self._numbers = itertools.count()

    def __call__(self, n_bytes: int) -> Tensor:
        """Return a new tensor of bytes, all 0.

        Raises:
            ConfigError: the disk has too little space.
        """
        place = self._place.with_name(f"{self._place.name}-{next(self._numbers):04d}")
        file = ScratchFile(place, n_bytes, self._wish, self._remedy)
        bytes_N = file.tensor(0, n_bytes, torch.uint8)
        file.close()
        return bytes_N


def in_buffer(buffer: Tensor, least_bytes: int = LEAST_BYTES) -> FreshTensors:
    """Return a block whose large tensors all begin where `buffer`, of bytes, begins; only the last of them is valid."""
    return FreshTensors(lambda n_bytes: buffer[:n_bytes] if n_bytes <= len(buffer) else None, least_bytes)


class FreshTensors(TorchDispatchMode):
    """A block in which new dense CPU tensors of at least `least_bytes` are made of what `supply` returns for their bytes.

    Where it returns None they are made as ever. Only what DeepSpeed and torch call to make a whole tensor is looked at: empty
    ones and zeros, copies, and flat tensors joined end to end; with `only_births`, only what a meta tensor becomes.
    """

    def __init__(
        self, supply: Callable[[int], Tensor | None], least_bytes: int = LEAST_BYTES, *, only_births: bool = False
    ) -> None:
        super().__init__()
        self._supply, self._least_bytes, self._only_births = supply, least_bytes, only_births

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        form = _form_of(func, args, kwargs)
        if form is None or (self._only_births and not (func in _BY_EXAMPLE and args[0].is_meta)):
            return func(*args, **kwargs)
        shape, dtype = form
        n_bytes = math.prod(shape) * dtype.itemsize
        found = self._supply(n_bytes) if n_bytes >= self._least_bytes else None
        if found is None:
            return func(*args, **kwargs)
        made = found.view(dtype).view(shape)
        if func in _ZEROS:
            made.zero_()
        elif func in _COPIES:
            made.copy_(args[0])
        elif func is _ATEN.cat.default:
            end = 0
            for piece in args[0]:
                made[end : end + len(piece)] = piece
                end += len(piece)
        return made


def _form_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[int, ...], torch.dtype] | None:
    """Return shape and dtype of the contiguous CPU tensor that a call makes, None for any other call."""
    if func is _ATEN.cat.default:
        pieces = args[0]
        is_flat = all(piece.dim() == 1 and piece.device.type == "cpu" and piece.dtype is pieces[0].dtype for piece in pieces)
        return ((sum(map(len, pieces)),), pieces[0].dtype) if is_flat else None
    if func not in _BY_SIZE | _BY_EXAMPLE:
        return None
    example = args[0] if func in _BY_EXAMPLE else None
    device = kwargs.get("device") or (torch.device("cpu") if example is None else example.device)
    if torch.device(device).type != "cpu" or (example is not None and not example.is_contiguous()):
        return None
    dtype = kwargs.get("dtype") or (torch.get_default_dtype() if example is None else example.dtype)
    return tuple(args[0] if example is None else example.shape), dtype
