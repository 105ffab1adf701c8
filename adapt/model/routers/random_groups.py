"""Random routed experts: the domain picks a group of experts, a fixed random map of token ids picks the expert within it.

Source: Ren et al. 2023 (PanGu-Sigma), arXiv:2303.10845; the map is a hash of (seed, group, id), not a stored table.
Training and inference: group = domain mod groups, expert = hash mod the group's size; experts are split into groups in order, as
evenly as they can be. Looks ahead at: nothing. Balance loss: none, nothing is learned.
"""

from __future__ import annotations

from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.hashing import mixed
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.fixed import FixedRouter
from adapt.model.routers.settings import RandomGroupsConfig


class RandomGroupsRouter(FixedRouter):
    """Domain to group, token id to expert; neither is learned.

    Raises:
        ConfigError: there are more groups than experts.
    """

    def __init__(self, config: RandomGroupsConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(n_experts)
        if not 1 <= config.groups <= n_experts:
            raise ConfigError(f"model.router.groups: {config.groups} is not from 1 to the {n_experts} experts of a layer")
        self.groups, self.seed = config.groups, config.seed

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        group_N = inputs.domain_ids_N % self.groups
        first_N = group_N * self.n_experts // self.groups
        size_N = (group_N + 1) * self.n_experts // self.groups - first_N
        return self.routed_to(first_N + mixed(mixed(inputs.token_ids_N, self.seed) ^ group_N, salt=1) % size_N)


ROUTERS.register("random_groups")(RouterEntry(config=RandomGroupsConfig, build=RandomGroupsRouter))
