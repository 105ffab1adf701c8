"""Hash routing: only a token's id decides its expert.

Source: Roller et al. 2021 (Hash Layers), random hash, arXiv:2106.04426. The map is a hash of (seed, id), so it needs
no table and no vocabulary size.
Training and inference: that map. Looks ahead at: nothing. Balance loss: none, nothing is learned; ids are spread
evenly, tokens only as evenly as their ids occur.
"""

from __future__ import annotations

from torch import Tensor

from adapt.model.hashing import mixed
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.fixed import FixedRouter
from adapt.model.routers.settings import HashConfig


class HashRouter(FixedRouter):
    """A fixed random map from token ids to experts."""

    def __init__(self, config: HashConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(n_experts)
        self.seed = config.seed

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        return self.routed_to(mixed(inputs.token_ids_N, self.seed) % self.n_experts)


ROUTERS.register("hash")(RouterEntry(config=HashConfig, build=HashRouter))
