"""What every base model takes and gives: the interface that scoring, labelling, training and export speak to.

Legend: B rows, T positions, P positions of a past, S masked positions at a row's end, H hidden size, A heads, D head size,
K routed (token, expert) pairs, N tokens that are not padding, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Past:
    """What later positions need of the rows' earlier ones: (keys, values) of every layer, [B, A, P, D] each."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def __len__(self) -> int:
        return self.layers[0][0].shape[2]


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """One batch of token rows.

    `documents_BT` numbers the documents of a row from 1; 0 is padding. Documents do not see each other. `is_packed` is False
    when no row holds more than one document, which spares the block mask.

    `mask_BSW`, where given, says alone what the last S positions of a row attend to: which of the P positions of the past and
    the T of the row (W = P + T). The T - S positions before them are plain causal among themselves. So a long text that many
    short candidates share needs no T x T mask. A `past` is what an earlier call kept of the same rows; with it, S = T.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    documents_BT: Tensor
    domains_BT: Tensor | None = None
    mask_BSW: Tensor | None = None
    is_packed: bool = True
    step: int | None = None
    past: Past | None = None
    keeps_past: bool = False

    def to(self, device: torch.device) -> ModelInputs:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return ModelInputs(
            ids_BT=self.ids_BT.to(device, non_blocking=True),
            positions_BT=self.positions_BT.to(device, non_blocking=True),
            documents_BT=self.documents_BT.to(device, non_blocking=True),
            domains_BT=move(self.domains_BT),
            mask_BSW=move(self.mask_BSW),
            is_packed=self.is_packed,
            step=self.step,
            past=self.past,
            keeps_past=self.keeps_past,
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
    """Hidden states after the final norm, one report per MoE layer (none for a dense model), and the past if it was kept."""

    hidden_BTH: Tensor
    routing: tuple[LayerRouting, ...] = ()
    past: Past | None = None


class CausalBase(Protocol):
    """A causal language model that can be adapted."""

    vocab_size: int
    hidden_size: int
    context_length: int
    expert_counts: tuple[int, ...]

    def __call__(self, inputs: ModelInputs) -> ModelOutput: ...

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return unnormalised scores over the vocabulary for chosen hidden states."""
        ...
