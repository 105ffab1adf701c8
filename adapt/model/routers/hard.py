"""Hard gate: the sequence's domain (a language, a corpus) decides the expert of all its tokens.

Source: Gururangan et al. 2021 (DEMix layers), arXiv:2108.05036, for domains; in the hard gate of Volcano Translation's multilingual
models the sentence's language names the expert.
Training and inference: expert = domain mod E. Looks ahead at: nothing; the domain is known before the text. Balance loss: none,
nothing is learned; loads are the domains' shares.
"""

from __future__ import annotations

from torch import Tensor

from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.fixed import FixedRouter
from adapt.model.routers.settings import HardConfig


class HardRouter(FixedRouter):
    """One expert per domain."""

    def __init__(self, config: HardConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(n_experts)

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        return self.routed_to(inputs.domain_ids_N % self.n_experts)


ROUTERS.register("hard")(RouterEntry(config=HardConfig, build=HardRouter))
