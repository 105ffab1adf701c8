"""The GPT with weights that it does not hold: a layer at a time, an expert at a time, from a provider that reads ahead.

Legend: B rows, T positions, N tokens that are not padding, K routed pairs sorted by expert, H hidden size.

Several batches go through a layer together, so that its weights are read once for all of them. Each batch is computed as it would
be alone (the same products of the same shapes), and so its outputs are the same bits as those of the GPT in memory: only the
order of loops differs. Experts are read ahead of the routing where nearly all of them will have tokens, else after it, and
those without tokens are not read at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapt.model.attention import KeysValues, Seen, seen_by
from adapt.model.gpt import GPT, Block
from adapt.model.inputs import LayerRouting, ModelInputs, ModelOutput, Past
from adapt.model.moe import MoELayer, Sent
from adapt.model.paging import WeightProvider
from adapt.model.per_expert_mlp import one_expert

_PAIRS_PER_EXPERT = 2  # from here on an even routing leaves fewer than one expert in seven without tokens


@dataclass(kw_only=True)
class _Passing:
    """A batch between two layers, and what it leaves behind."""

    inputs: ModelInputs
    x_BTH: Tensor
    seen: Seen
    reports: list[LayerRouting]
    kept: list[KeysValues]


@dataclass(kw_only=True)
class _ToExperts:
    """A batch's tokens sorted by expert, and their outputs as they come."""

    sent: Sent
    order_K: Tensor
    counts_E: Tensor
    starts: list[int]
    x_KH: Tensor
    y_KH: Tensor


class PagedGPT:
    """A `CausalBase` for scoring. `frame` is a GPT on the meta device whose parameters have the formats to compute in."""

    def __init__(self, frame: GPT, provider: WeightProvider, pass_tokens: int) -> None:
        self.config = frame.config
        self.vocab_size = frame.vocab_size
        self.hidden_size = frame.hidden_size
        self.context_length = frame.context_length
        self.expert_counts = frame.expert_counts
        self.router_traits = frame.router_traits
        self.pass_tokens = pass_tokens
        self.provider = provider
        self._frame = frame.eval()
        self._blocks = [block for block in frame.blocks if isinstance(block, Block)]
        _fill(frame, provider.resident())

    def __call__(self, inputs: ModelInputs) -> ModelOutput:
        return self.run_together([inputs])[0]

    @torch.no_grad()
    def run_together(self, batches: Sequence[ModelInputs]) -> list[ModelOutput]:
        """Take batches through the layers side by side and return each one's output."""
        frame = self._frame
        passing = [self._started(inputs) for inputs in batches]
        n_pairs = sum(int(inputs.documents_BT.count_nonzero()) for inputs in batches) * self.router_traits.experts_per_token
        # One rule for all layers: experts read late would wait for the room of a later layer's that were read ahead.
        is_ahead = n_pairs >= _PAIRS_PER_EXPERT * max(self.expert_counts, default=0)
        self._expect(0, is_ahead)
        for layer, block in enumerate(self._blocks):
            with self.provider.layer(layer) as weights, _filled(block, weights):
                self._expect(layer + 1, is_ahead)
                self._through(layer, block, passing, is_ahead)
        return [
            ModelOutput(
                hidden_BTH=frame.final_norm(one.x_BTH),
                routing=tuple(one.reports),
                past=Past(layers=tuple(one.kept)) if one.inputs.keeps_past else None,
            )
            for one in passing
        ]

    def _started(self, inputs: ModelInputs) -> _Passing:
        x_BTH = self._frame.embedding(inputs.ids_BT) + self._frame.positions(inputs.positions_BT)
        seen = seen_by(inputs, x_BTH.dtype, self.config.head_size)
        return _Passing(inputs=inputs, x_BTH=x_BTH, seen=seen, reports=[], kept=[])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return self._frame.logits(hidden_NH)

    def gates(self) -> list[list[Tensor]]:
        return []  # it is never trained

    def after_step(self, counts_LE: Sequence[Tensor]) -> None:
        raise AssertionError("a model whose weights are paged is never trained")

    def _expect(self, layer: int, is_ahead: bool) -> None:
        """Have a layer read ahead, with all of its experts where nearly all will have tokens (`is_ahead`)."""
        if layer >= len(self._blocks):
            return
        self.provider.expect_layer(layer)
        n_experts = _n_experts(self._blocks[layer])
        if n_experts and is_ahead:
            self.provider.expect_experts(layer, range(n_experts))

    def _through(self, layer: int, block: Block, passing: list[_Passing], is_ahead: bool) -> None:
        """Take every batch through one layer."""
        mlp = block.mlp
        normed: list[Tensor] = []
        for one in passing:
            past = None if one.inputs.past is None else one.inputs.past.layers[layer]
            one.x_BTH, x_normed, present = block.attend(one.x_BTH, one.seen, past)
            normed.append(x_normed)
            if one.inputs.keeps_past:
                one.kept.append(present)
        if not isinstance(mlp, MoELayer):
            for one, x_normed in zip(passing, normed, strict=True):
                one.x_BTH = one.x_BTH + mlp(x_normed)
            return
        going = [_sorted(mlp.send(x_normed, one.inputs), mlp) for one, x_normed in zip(passing, normed, strict=True)]
        self._through_experts(layer, mlp, going, is_ahead)
        for one, x_normed, some in zip(passing, normed, going, strict=True):
            out, report = mlp.gather(x_normed, some.sent, _combined(some), some.counts_E)
            one.x_BTH = one.x_BTH + out
            one.reports.append(report)

    def _through_experts(self, layer: int, mlp: MoELayer, going: list[_ToExperts], is_ahead: bool) -> None:
        """Read each expert that has tokens once, and apply it to those of every batch."""
        used = [e for e in range(mlp.experts.n_experts) if any(some.starts[e] < some.starts[e + 1] for some in going)]
        if is_ahead:
            self.provider.forget_experts(layer, sorted(set(range(mlp.experts.n_experts)) - set(used)))
        else:
            self.provider.expect_experts(layer, used)
        experts, dtype = mlp.experts, mlp.experts.up_weight.dtype
        for expert in used:
            with self.provider.expert(layer, expert) as weights:
                up, up_bias = weights.up_FH.to(dtype), experts.up_bias[expert]
                down, down_bias = weights.down_HF.to(dtype), experts.down_bias[expert]
                for some in going:
                    rows = slice(some.starts[expert], some.starts[expert + 1])
                    if rows.start < rows.stop:
                        some.y_KH[rows] = one_expert(some.x_KH[rows], experts.gelu, up, up_bias, down, down_bias)


def _n_experts(block: Block) -> int:
    mlp = block.mlp
    return mlp.experts.n_experts if isinstance(mlp, MoELayer) else 0


def _sorted(sent: Sent, mlp: MoELayer) -> _ToExperts:
    """Sort a batch's pairs by expert, as `Experts` does."""
    order_K = torch.argsort(sent.kept.expert_K, stable=True)
    counts_E = torch.bincount(sent.kept.expert_K, minlength=mlp.experts.n_experts)
    x_KH = sent.x_NH[sent.kept.token_K[order_K]]
    starts = [0, *counts_E.cumsum(0).tolist()]
    return _ToExperts(sent=sent, order_K=order_K, counts_E=counts_E, starts=starts, x_KH=x_KH, y_KH=torch.empty_like(x_KH))


def _combined(some: _ToExperts) -> Tensor:
    """Return each token's weighted sum of expert outputs, as `Experts` does."""
    kept = some.sent.kept
    y_KH = some.y_KH * kept.weight_K[some.order_K].to(some.y_KH.dtype).unsqueeze(-1)
    return torch.zeros_like(some.sent.x_NH).index_add(0, kept.token_K[some.order_K], y_KH)


@contextlib.contextmanager
def _filled(block: Block, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a block compute with these weights; it holds none before and after."""
    empty = _fill(block, weights)
    try:
        yield
    finally:
        _fill(block, empty)


def _fill(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors in the place of parameters and buffers, in the format of those; return what was there."""
    before: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        is_parameter = leaf in owner._parameters
        old = owner._parameters[leaf] if is_parameter else owner._buffers[leaf]
        assert old is not None, "a weight of the checkpoint has its place in the model"
        before[name] = old
        new = tensor.to(old.dtype)
        if is_parameter:
            owner._parameters[leaf] = new if isinstance(new, nn.Parameter) else nn.Parameter(new, requires_grad=False)
        else:
            owner._buffers[leaf] = new
    return before
