"""A model whose ranks own a slice of the experts of every layer each: what it keeps, and what of a full tensor is its own.

Tensors outside a rank are always full, with all experts in their order, so that a checkpoint does not know over how many ranks the
experts were split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Protocol, TypeVar

from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.model.exchange import ExpertShare
from adapt.model.experts import Experts

Model = TypeVar("Model", bound=nn.Module)


def check_share(expert_counts: Sequence[int], n_ranks: int) -> None:
    """Raise ConfigError unless `n_ranks` can own equal slices of every layer's experts."""
    if n_ranks == 1:
        return
    if not expert_counts:
        raise ConfigError(
            f"engine.expert_parallel: is {n_ranks}, but this model has no experts that ranks could share; set it to 1"
        )
    uneven = [count for count in expert_counts if count % n_ranks]
    if uneven:
        raise ConfigError(
            f"engine.expert_parallel: {n_ranks} ranks cannot share the {uneven[0]} experts of a layer evenly; "
            f"the nearest setting is {math.gcd(n_ranks, *expert_counts)}"
        )


def own_experts(model: Model, share: ExpertShare) -> Model:
    """Let a model keep only a share of its experts; on the meta device, before anything is allocated.

    Raises:
        ConfigError: a layer's experts cannot be shared evenly.
    """
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    check_share([experts.n_experts for experts in layers], share.of)
    for experts in layers:
        experts.own(share)
    return model


class Rows(Protocol):
    """A tensor, or one on a disk of which rows are read as they are asked for; `...` is all of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice | EllipsisType, /) -> Tensor: ...


def own_part(name: str, full: Rows, share: ExpertShare) -> Tensor:
    """Return what of a full tensor a rank with this share holds: its slice of stacked experts, all of anything else."""
    return full[share.slice_of(len(full))] if is_stack(name) else full[...]


def is_stack(name: str) -> bool:
    """Whether a parameter, by its name, stacks the experts of a layer."""
    return ".experts." in name
