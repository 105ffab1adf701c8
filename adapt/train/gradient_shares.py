"""How much each part of the loss contributes to a step's gradient: its own gradient's norm, and that norm's share of all parts'.

Micro-batches flow in, named numbers for the history flow out; weights and the engine's gradients stay as they are. A part's
gradient is that of its weighted value over the whole step and every rank, as it goes into the update. The norms do not add up to
the norm of the sum (parts may pull against each other), so a share is a part's norm over the sum of all parts' norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
    norm_over_ranks: Callable[[Mapping[str, Tensor]], float],
    world_size: int,
    scale: float = 1.0,
) -> dict[str, float]:
    """Return `gradient_norm/<part>` and `gradient_share/<part>` of every part with a weight.

    It costs a forward and backward pass per part (what is computed again in backward can be so only once) and holds one gradient.
    `norm_over_ranks` returns the norm of the sum over ranks of their gradients by name. `scale` is the step's loss scale. A
    collective.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms: dict[str, float] = {}
    for place, weight in enumerate(weights_P.tolist()):
        if weight:
            gradients = _gradient_of(place, parameters, micro_batches, contribute, scale)
            # The factor world_size in every loss awaits the engine's average over ranks.
            norms[names[place]] = norm_over_ranks(gradients) / world_size
    whole = sum(norms.values()) or 1.0
    return {
        **{f"gradient_norm/{name}": norm for name, norm in norms.items()},
        **{f"gradient_share/{name}": norm / whole for name, norm in norms.items()},
    }


def _gradient_of(
    place: int,
    parameters: Mapping[str, nn.Parameter],
    micro_batches: Sequence[Batch],
    contribute: Callable[[Batch], Contribution],
    scale: float,
) -> dict[str, Tensor]:
    """Add up one part's gradient over this rank's micro-batches, by parameter name."""
    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    for batch in micro_batches:
        loss = contribute(batch).losses_P[place]
        if not loss.requires_grad:
            continue
        gradients = torch.autograd.grad(loss * scale, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float() / scale
    return total
