"""How much each part of the loss contributes to a step's gradient: its own gradient's norm, and that norm's share of all parts'.

Micro-batches flow in, named numbers for the history flow out; weights and the engine's gradients stay as they are. A part's
gradient is that of its weighted value over the whole step and every rank, as it goes into the update. The norms do not add up to
the norm of the sum (parts may pull against each other), so a share is a part's norm over the sum of all parts' norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adapt.model.batches import Batch
from adapt.objective import Contribution


def gradient_shares(
    model: nn.Module,
    names: Sequence[str],
    weights_P: Tensor,
    micro_batches: Sequence[Batch],
    contribute: Callable[[Batch], Contribution],
    all_sum: Callable[[Tensor], Tensor],
    world_size: int,
    scale: float = 1.0,
) -> dict[str, float]:
    """Return `gradient_norm/<part>` and `gradient_share/<part>` of every part with a weight.

    It costs a backward pass per part and holds one gradient per part. `scale` is the step's loss scale. A collective.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    places = [place for place, weight in enumerate(weights_P.tolist()) if weight]
    totals = {place: [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters] for place in places}
    for batch in micro_batches:
        losses_P = contribute(batch).losses_P
        for place in places:
            if not losses_P[place].requires_grad:
                continue
            gradients = torch.autograd.grad(losses_P[place] * scale, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(totals[place], gradients, strict=True):
                if gradient is not None:
                    total += gradient.float() / scale
    # The factor world_size in every loss awaits the engine's average over ranks.
    norms = {names[place]: _norm(totals[place], all_sum) / world_size for place in places}
    whole = sum(norms.values()) or 1.0
    return {
        **{f"gradient_norm/{name}": norm for name, norm in norms.items()},
        **{f"gradient_share/{name}": norm / whole for name, norm in norms.items()},
    }


def _norm(gradients: Sequence[Tensor], all_sum: Callable[[Tensor], Tensor]) -> float:
    squares = sum(float(all_sum(gradient.flatten().double()).square().sum()) for gradient in gradients)
    return float(squares) ** 0.5
