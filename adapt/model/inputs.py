"""What every base model takes and gives: the interface that scoring, labelling, training and export speak to.

Legend: B rows, T positions, P positions of a past, S masked positions at a row's end, H hidden size, A heads, D head size,
K routed (token, expert) pairs, N tokens that are not padding, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from adapt.model.token_positions import TokenPlaces


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
    when no row holds more than one document, which spares the mask of documents.

    Only `mask_BSW`, where given, says what the last S positions of a row attend to: which of the P positions of the past and
    the T of the row (W = P + T). The T - S positions before them are plain causal among themselves. So a long text that many
    short candidates share needs no T x T mask. A `past` is what an earlier call kept of the same rows; with it, S = T.

    In training, `step` is the global step, and `row_keys_B` tells the step's rows apart wherever they are computed (int64 of
    any size): what is random is a function of them.

    `places` follow from `documents_BT`; `to` finds them before the batch leaves the host.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    documents_BT: Tensor
    domains_BT: Tensor | None = None
    mask_BSW: Tensor | None = None
    is_packed: bool = True
    step: int | None = None
    row_keys_B: Tensor | None = None
    past: Past | None = None
    keeps_past: bool = False
    places: TokenPlaces | None = None

    def token_places(self) -> TokenPlaces:
        """Return where tokens stand. Of a batch that was laid out on a device, this waits for it."""
        return TokenPlaces.of(self.documents_BT) if self.places is None else self.places

    def to(self, device: torch.device) -> ModelInputs:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids_BT=self.ids_BT.to(device, non_blocking=True),
            positions_BT=self.positions_BT.to(device, non_blocking=True),
            documents_BT=self.documents_BT.to(device, non_blocking=True),
            domains_BT=move(self.domains_BT),
            mask_BSW=move(self.mask_BSW),
            row_keys_B=move(self.row_keys_B),
            places=self.token_places().to(device),
        )


@dataclass(frozen=True, kw_only=True)
class RouterInputs:
    """What a router may look at beside the hidden states; padding was taken out before.

    A sequence's tokens stand in order of position. `noise_keys_N` differ between the tokens, layers and steps of a run and
    follow from what a token is, not from where it is computed; absent outside training.
    """

    token_ids_N: Tensor
    sequence_ids_N: Tensor
    positions_N: Tensor
    domain_ids_N: Tensor
    step: int | None = None
    noise_keys_N: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """A router's decision, flat: pair k sends token `token_K[k]` to expert `expert_K[k]` with weight `weight_K[k]`.

    `probs_NE` are the gate probabilities that the balance loss differentiates (fp32), `logits_NE` what they came from (absent
    where there is no gate). `losses` are the router's own, each a sum over tokens, in training only. `overload` counts the pairs
    above the room that the router itself means experts to have (absent where it sets none).
    """

    token_K: Tensor
    expert_K: Tensor
    weight_K: Tensor
    probs_NE: Tensor
    logits_NE: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    overload: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """What one MoE layer reports: its routing, how many tokens each expert was sent, and how many of these pairs were dropped.

    `overload` is the router's own count of pairs above its room.
    """

    probs_NE: Tensor
    logits_NE: Tensor | None
    counts_E: Tensor
    dropped: Tensor
    expert_K: Tensor
    token_K: Tensor
    sequence_ids_N: Tensor
    losses: Mapping[str, Tensor]
    overload: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RouterTraits:
    """What training and counting must know of a model's routers.

    `loss_weights`: the coefficient of each of their own losses. `looks_ahead`: in training a token's experts may depend on later
    tokens, so that the training loss is not a language model's. `experts_per_token`: at inference.
    """

    has_balance_loss: bool = True
    looks_ahead: bool = False
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    experts_per_token: int = 1


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
    router_traits: RouterTraits

    def __call__(self, inputs: ModelInputs) -> ModelOutput: ...

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return unnormalised scores over the vocabulary for chosen hidden states."""
        ...

    def gates(self) -> Sequence[Sequence[Tensor]]:
        """Return each MoE layer's router parameters."""
        ...

    def after_step(self, counts_LE: Sequence[Tensor]) -> None:
        """Let the routers adapt to a step's global token counts."""
        ...
