"""Even routing: every token's experts are shifted by a hash of what the token is, so that all experts get their share.

Legend: N tokens, K routed (token, expert) pairs.

For measuring what random weights cost: their routers send nearly all tokens to a few experts. A token's experts stay different from
one another, and depend only on its id, position and layer, so a score still does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import replace

from adapt.model.hashing import mixed
from adapt.model.inputs import RouterInputs, Routing


def spread_evenly(routing: Routing, inputs: RouterInputs, n_experts: int, layer: int) -> Routing:
    """Return the routing with each token's experts shifted round by its hash; weights and probabilities stay."""
    shift_N = mixed(mixed(inputs.token_ids_N, layer) ^ inputs.positions_N, salt=3) % n_experts
    return replace(routing, expert_K=(routing.expert_K + shift_N[routing.token_K]) % n_experts, overload=None)
