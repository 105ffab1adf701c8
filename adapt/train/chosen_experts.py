"""Training only the experts that a task's tokens are routed to, while the other experts of the same stacks stay as they are.

Before training, the router's decisions on held-out rows of the task are counted. Of each layer the experts with the largest shares
are chosen until they take the wanted share of the routed pairs. The gradients of the others are set to 0, and AdamW leaves a
weight without gradient, moments and decay as it is, bit by bit: so nothing of these stacks decays.
Source: Wang et al. 2024 (expert-specialized fine-tuning by token selection ratio, arXiv:2407.01906), section 3.

Legend: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.model.exchange import ExpertShare
from adapt.train.expert_loads import Shares

_STACKS = ".experts."


def choose_experts(loads: Iterable[Shares], coverage: float) -> list[list[int]]:
    """Return of each layer the fewest experts that take at least `coverage` of the routed pairs, by the mean of several loads.

    Raises:
        ConfigError: no row was measured.
    """
    measured = [shares for shares in loads if any(share for layer in shares for share in layer)]
    if not measured:
        raise ConfigError("expert_coverage: no held-out row shows where the task's tokens go; give more rows, or set it to null")
    chosen = []
    for layers in zip(*measured, strict=True):
        mean_E = torch.tensor(layers, dtype=torch.float64).mean(dim=0)
        order_E = torch.argsort(mean_E, descending=True, stable=True)
        covered_E = mean_E[order_E].cumsum(0) / mean_E.sum()
        n_chosen = int((covered_E < coverage - 1e-9).sum()) + 1
        chosen.append(sorted(order_E[:n_chosen].tolist()))
    return chosen


def train_only_chosen(
    model: nn.Module, chosen_LE: Sequence[Sequence[int]], expert_counts: Sequence[int], share: ExpertShare
) -> int:
    """Let no gradient reach the other experts' weights; return how many parameters of this rank are trained.

    `chosen_LE` counts experts over all ranks; stacks hold those of the rank's `share`.
    """
    layer_of = {prefix: layer for layer, prefix in enumerate(_layers(model))}
    assert len(layer_of) == len(chosen_LE), "every MoE layer has its stacks"
    n_trained = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or _STACKS not in name:
            continue
        layer = layer_of[name.split(_STACKS)[0]]
        keep_E = torch.zeros(expert_counts[layer], dtype=parameter.dtype)
        keep_E[list(chosen_LE[layer])] = 1
        keep_E = keep_E[share.slice_of(expert_counts[layer])].to(parameter.device)
        assert len(keep_E) == len(parameter), "stacks hold one slice for each expert"
        parameter.register_hook(partial(_masked, keep_E.view(-1, *[1] * (parameter.dim() - 1))))
        n_trained += int(keep_E.sum()) * parameter[0].numel()
    return n_trained


def said_of_chosen(chosen_LE: Sequence[Sequence[int]], expert_counts: Sequence[int], n_trained: int) -> str:
    """Return in words how many experts of each layer are trained."""
    layers = ", ".join(f"{len(chosen)} of {count}" for chosen, count in zip(chosen_LE, expert_counts, strict=True))
    return f"experts chosen by where held-out rows are routed, by MoE layer: {layers}; {n_trained:,} parameters are trained"


def _layers(model: nn.Module) -> list[str]:
    """Return what the names of each layer's stacks begin with, from the first MoE layer on."""
    return list(dict.fromkeys(name.split(_STACKS)[0] for name, _ in model.named_parameters() if _STACKS in name))


def _masked(keep: Tensor, gradient: Tensor) -> Tensor:
    return gradient * keep
