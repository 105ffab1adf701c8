"""The sparse GPT: pre-norm decoder blocks with learned positions, MoE in every second layer, output tied to the embedding.

Legend: B rows, T positions, N chosen positions, H hidden size, V vocabulary, E experts.

Layers 2, 4, ... (from 1) are MoE layers; `experts` lists how many experts each has. A list that grows towards the end is
the pyramid of Rajbhandari et al. 2022 (arXiv:2201.05596, section 4.1.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.core.runtime import seed_for
from adapt.model.attention import Attention, KeysValues, Seen, seen_by
from adapt.model.config import GPTConfig, Recompute
from adapt.model.expert_residual import starts_at_zero
from adapt.model.experts import Experts
from adapt.model.inputs import LayerRouting, ModelInputs, ModelOutput, Past, RouterTraits
from adapt.model.moe import DenseMLP, MoELayer
from adapt.model.recompute import recomputed


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a layer norm, each added to its input."""

    recompute = Recompute.NONE

    def __init__(self, config: GPTConfig, layer: int, n_experts: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.ffn_width
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.attention = Attention(hidden, config.n_heads)
        self.mlp_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.mlp: DenseMLP | MoELayer
        if n_experts:
            self.mlp = MoELayer(
                hidden,
                width,
                n_experts,
                config.router,
                config.is_residual,
                layer=layer,
                capacity_factor=config.capacity_factor,
                gelu=config.gelu,
                expert_residual_layers=config.expert_residual_layers,
                is_even=config.even_routing,
            )
        else:
            self.mlp = DenseMLP(hidden, width, config.gelu)

    def forward(
        self, x_BTH: Tensor, seen: Seen, inputs: ModelInputs, past: KeysValues | None
    ) -> tuple[Tensor, LayerRouting | None, KeysValues]:
        if self.recompute is Recompute.FULL and torch.is_grad_enabled():
            return recomputed(self._run, x_BTH, seen, inputs, past)
        return self._run(x_BTH, seen, inputs, past)

    def attend(self, x_BTH: Tensor, seen: Seen, past: KeysValues | None) -> tuple[Tensor, Tensor, KeysValues]:
        """Return the positions after attention, what the feed-forward part reads of them, and the keys and values so far."""
        x_BTH, present = self._attended(x_BTH, seen, past)
        return x_BTH, self.mlp_norm(x_BTH), present

    def _attended(self, x_BTH: Tensor, seen: Seen, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        mixed, present = self.attention(self.attention_norm(x_BTH), seen, past)
        return x_BTH + mixed, present

    def _run(
        self, x_BTH: Tensor, seen: Seen, inputs: ModelInputs, past: KeysValues | None
    ) -> tuple[Tensor, LayerRouting | None, KeysValues]:
        x_BTH, present = self._attended(x_BTH, seen, past)
        if self.recompute is Recompute.SELECTIVE and torch.is_grad_enabled():
            return *recomputed(self._feed_forward, x_BTH, inputs), present
        return *self._feed_forward(x_BTH, inputs), present

    def _feed_forward(self, x_BTH: Tensor, inputs: ModelInputs) -> tuple[Tensor, LayerRouting | None]:
        normed = self.mlp_norm(x_BTH)
        if isinstance(self.mlp, MoELayer):
            out, report = self.mlp(normed, inputs)
            return x_BTH + out, report
        return x_BTH + self.mlp(normed), None


class GPT(nn.Module):
    """A causal base model. Made on the meta device; `materialize` or a checkpoint fills it."""

    def __init__(self, config: GPTConfig) -> None:
        config.validate()
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden_size
        self.context_length = config.context_length
        self.expert_counts = tuple(count for count in config.expert_counts() if count)
        with torch.device("meta"):
            self.embedding = _embedding(config.vocab_size, config.hidden_size)
            self.positions = _embedding(config.context_length, config.hidden_size)
            self.blocks = nn.ModuleList(Block(config, *at) for at in enumerate(config.expert_counts()))
            self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.router_traits = self._router_traits()

    def forward(self, inputs: ModelInputs) -> ModelOutput:
        x_BTH = self.embedding(inputs.ids_BT) + self.positions(inputs.positions_BT)
        seen = seen_by(inputs, x_BTH.dtype, self.config.head_size)
        reports, kept = [], []
        for index, block in enumerate(self.blocks):
            past = None if inputs.past is None else inputs.past.layers[index]
            x_BTH, report, present = block(x_BTH, seen, inputs, past)
            if report is not None:
                reports.append(report)
            if inputs.keeps_past:
                kept.append(present)
        past_now = Past(layers=tuple(kept)) if inputs.keeps_past else None
        return ModelOutput(hidden_BTH=self.final_norm(x_BTH), routing=tuple(reports), past=past_now)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return functional.linear(hidden_NH, self.embedding.weight)

    def set_recompute(self, what: Recompute) -> None:
        """Choose what is computed again in the backward pass instead of being kept."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recompute = what

    def gates(self) -> list[list[Tensor]]:
        return [list(layer.router.parameters()) for layer in self._moe_layers()]

    def after_step(self, counts_LE: Sequence[Tensor]) -> None:
        for layer, counts_E in zip(self._moe_layers(), counts_LE, strict=True):
            layer.router.after_step(counts_E)

    def _moe_layers(self) -> list[MoELayer]:
        return [block.mlp for block in self.blocks if isinstance(block.mlp, MoELayer)]

    def _router_traits(self) -> RouterTraits:
        layers = self._moe_layers()
        if not layers:
            return RouterTraits()
        traits = layers[0].router.traits
        return replace(traits, looks_ahead=traits.looks_ahead or self.config.capacity_factor is not None)


def _embedding(count: int, width: int) -> nn.Embedding:
    """Return an embedding without drawing its weight, which on the meta device imports torch's compiler, for seconds."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


@torch.no_grad()
def materialize(model: GPT, seed: int, device: torch.device | str = "cpu") -> GPT:
    """Allocate a meta-device model and initialise it tensor by tensor, each from (seed, name), each expert on its own.

    So the same seed gives the same weights however experts are split over ranks.
    """
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        slices, first = parameter.unsqueeze(0), 0
        if isinstance(owner, Experts):
            slices, first = parameter.data, owner.share.slice_of(owner.n_experts).start
        for index, part in enumerate(slices, start=first):
            part.copy_(initial_part(model.config, name, index, tuple(part.shape), seed))
    return model


def initial_part(config: GPTConfig, name: str, index: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return an untrained parameter, of stacked experts' the one of expert `index`, in fp32.

    Matrices are normal with `init_std`, those that write to the residual stream divided by sqrt(2 * layers) (Radford et al.
    2019); norms start at 1, biases at 0.
    """
    if "norm" in name:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias") or starts_at_zero(name):
        return torch.zeros(shape)
    writes_residual = name.endswith(("attention.out.weight", "down.weight", "down_weight"))
    scale = config.init_std / (2 * config.n_layers) ** 0.5 if writes_residual else config.init_std
    generator = torch.Generator().manual_seed(seed_for(seed, name, index))
    return torch.empty(shape).normal_(0.0, scale, generator=generator)
