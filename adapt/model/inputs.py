"""What every base model takes and gives: the interface that scoring, labelling, training and export speak to.

Legend: B rows, T positions, H hidden size, K routed (token, expert) pairs, N tokens that are not padding, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """One batch of token rows.

    `documents_BT` numbers the documents of a row from 1; 0 is padding. Documents do not see each other. `mask_BTT`, where
    given, says alone which position (second axis) may attend to which (third axis). `is_packed` is False when no row
    holds more than one document, which spares the block mask.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    documents_BT: Tensor
    domains_BT: Tensor | None = None
    mask_BTT: Tensor | None = None
    is_packed: bool = True
    step: int | None = None

    def to(self, device: torch.device) -> ModelInputs:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return ModelInputs(
            ids_BT=self.ids_BT.to(device, non_blocking=True),
            positions_BT=self.positions_BT.to(device, non_blocking=True),
            documents_BT=self.documents_BT.to(device, non_blocking=True),
            domains_BT=move(self.domains_BT),
            mask_BTT=move(self.mask_BTT),
            is_packed=self.is_packed,
            step=self.step,
        )


@dataclass(frozen=True, kw_only=True)
class RouterInputs:
    """What a router may look at beside the hidden states; padding was taken out before."""

    token_ids_N: Tensor
    sequence_ids_N: Tensor
    domain_ids_N: Tensor | None = None
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """A router's decision, flat: pair k sends token `token_K[k]` to expert `expert_K[k]` with weight `weight_K[k]`.

    `probs_NE` are the gate probabilities that the balance loss differentiates (fp32). `losses` are the router's own
    losses, each as (sum, count).
    """

    token_K: Tensor
    expert_K: Tensor
    weight_K: Tensor
    probs_NE: Tensor
    losses: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """What one MoE layer reports: gate probabilities, how many tokens each expert took, and each token's sequence."""

    probs_NE: Tensor
    counts_E: Tensor
    expert_K: Tensor
    token_K: Tensor
    sequence_ids_N: Tensor
    losses: dict[str, tuple[Tensor, int]]


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Hidden states after the final norm, and one report per MoE layer (none for a dense model)."""

    hidden_BTH: Tensor
    routing: tuple[LayerRouting, ...] = ()


class CausalBase(Protocol):
    """A causal language model that can be adapted."""

    vocab_size: int
    context_length: int
    expert_counts: tuple[int, ...]

    def __call__(self, inputs: ModelInputs) -> ModelOutput: ...

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return unnormalised scores over the vocabulary for chosen hidden states."""
        ...
