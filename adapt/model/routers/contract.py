"""The router contract, and the registry that every file of this folder registers itself in.

A router decides in fp32 which tokens go to which experts. At inference its rule is per token: a token's experts depend on
nothing but that token's hidden state and ids, so that a score never depends on its neighbours. `Router.training` says which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adapt.core.registry import Registry, import_folder
from adapt.model.buffers import ExactBuffers
from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.settings import RouterConfig


class Router(ExactBuffers):
    """Sends tokens to experts. Subclasses define `route` and say what they are by `traits`; the rest is optional.

    State that is no parameter is a registered buffer; it starts at 0 and is saved with the weights.
    """

    traits = RouterTraits()

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        """Decide for N tokens (fp32 inside). Raises nothing; N may be 0.

        In training, `losses` has every name of `traits.loss_weights`; at inference it is empty.
        """
        raise NotImplementedError

    def after_step(self, counts_E: Tensor) -> None:
        """Adapt to the step's global token counts (routers that balance by a bias). Nothing by default."""

    def combine(self, out_NH: Tensor, routing: Routing) -> Tensor:
        """Post-process the weighted sum of expert outputs. The identity by default."""
        return out_NH


@dataclass(frozen=True)
class RouterEntry:
    """A registered router: its settings class and how it is made from (settings, hidden size, experts)."""

    config: type[RouterConfig]
    build: Callable[..., Router]


ROUTERS: Registry[RouterEntry] = Registry("router")


def all_routers() -> Registry[RouterEntry]:
    """Return the registry with every file of this folder imported."""
    import_folder(__package__, list(sys.modules[__package__].__path__))
    return ROUTERS


def build_router(config: RouterConfig, hidden_size: int, n_experts: int) -> Router:
    """Make the router that `config.name` names."""
    return all_routers().get(config.name).build(config, hidden_size, n_experts)


def numbered(sequence_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's sequence, numbered from 0, and how many tokens each has: the groups over which some routers assign."""
    _, number_N, sizes_S = sequence_ids_N.unique(return_inverse=True, return_counts=True)
    return number_N, sizes_S
