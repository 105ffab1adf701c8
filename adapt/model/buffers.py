"""Buffers that are state: never rounded with the weights, and saved and loaded beside them under their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose floating buffers keep their format when its weights are cast; they only move."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            owner, _, leaf = name.rpartition(".")
            moved = self.get_buffer(name)
            self.get_submodule(owner)._buffers[leaf] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self


def saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, buffer) of the buffers that belong to a model's state; those of a frozen base are the base's."""
    if getattr(model, "has_frozen_base", False):
        return iter(())
    kept = model.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def state_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of what training makes: all of a model, or only what is trained beside a frozen base."""
    has_frozen_base = getattr(model, "has_frozen_base", False)
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad or not has_frozen_base)


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all that makes a model what it is: parameters, then saved buffers."""
    yield from state_parameters(model)
    yield from saved_buffers(model)
