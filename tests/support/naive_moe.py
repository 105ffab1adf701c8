"""A MoE layer written out token by token in fp64, with every router's rule in plain loops: slow, obvious, and the specification.

A token is the pair (row, column); `Sequence` holds what a rule may look at: one document's tokens, in order. A rule returns, for
each token, its (expert, weight) pairs and its gate probabilities, and the router's losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.inputs import ModelInputs
from adapt.model.moe import MoELayer
from adapt.model.routers.margin import MarginTarget

Decisions = list[list[tuple[int, Tensor]]]
Ruling = tuple[Decisions, list[Tensor], dict[str, Tensor]]
_BITS = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One document: hidden states, token ids, noise keys, its domain, and the step (absent: inference)."""

    x: list[Tensor]
    ids: list[int]
    keys: list[int]
    domain: int
    step: int | None


def mixed(value: int, salt: int) -> int:
    z = (value + salt * 0x9E3779B97F4A7C15) & _BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return z ^ (z >> 31)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def jittered(config: Any, x: Tensor, key: int, step: int | None) -> Tensor:
    if step is None:
        return x
    draws = [(mixed(mixed(key, 1) + column, 2) >> 40) / (1 << 24) for column in range(len(x))]
    return x * (1 + config.jitter * (2 * torch.tensor(draws, dtype=torch.float64) - 1))


def softmax_top_k(k: int) -> Callable[..., Ruling]:
    def rule(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
        decisions, gates, z = [], [], torch.zeros((), dtype=torch.float64)
        for x, key in zip(s.x, s.keys, strict=True):
            logits = weights["weight"] @ jittered(config, x, key, s.step)
            p = logits.softmax(-1)
            chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[:k]
            total = sum(p[e] for e in chosen) if k > 1 else 1.0
            decisions.append([(e, p[e] / total) for e in chosen])
            gates.append(p)
            z = z + logits.logsumexp(-1) ** 2
        return decisions, gates, {"z": z} if config.z_loss_weight and s.step is not None else {}

    return rule


def margin_logits(config: Any, w: Tensor, x: Tensor, position: int, step: int) -> tuple[Tensor, int]:
    logits = w @ x
    target = int(logits.argmax()) if config.target is MarginTarget.ROUTED else position % len(logits)
    norms = w[target].norm() * x.norm()
    theta = torch.acos(logits[target] / norms)
    k = math.floor(config.margin * theta.item() / math.pi)
    psi = (-1) ** k * torch.cos(config.margin * theta) - 2 * k
    beta = config.beta_start * config.beta_decay**step
    blended = (norms * psi + beta * logits[target]) / (1 + beta)
    return torch.stack([blended if e == target else logits[e] for e in range(len(logits))]), target


def large_margin(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
    decisions, gates, loss = [], [], torch.zeros((), dtype=torch.float64)
    for position, x in enumerate(s.x):
        logits = weights["weight"] @ x
        scaling = logits
        if s.step is not None:
            with_margin, target = margin_logits(config, weights["weight"], x, position, s.step)
            loss = loss - with_margin.log_softmax(-1)[target]
            scaling = logits if config.effect.value == "loss" else with_margin
        expert = int(logits.argmax())
        decisions.append([(expert, scaling.softmax(-1)[expert])])
        gates.append(logits.softmax(-1))
    return decisions, gates, {} if s.step is None or config.effect.value == "gate" else {"margin": loss}


def expert_choice(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
    gates = [(weights["weight"] @ x).softmax(-1) for x in s.x]
    if s.step is None:
        return [[(int(p.argmax()), p.max())] for p in gates], gates, {}
    n, n_experts = len(s.x), len(weights["weight"])
    decisions: Decisions = [[] for _ in s.x]
    for expert in range(n_experts):
        best = sorted(range(n), key=lambda token: -gates[token][expert].item())
        for token in best[: min(math.ceil(config.picks_per_token * n / n_experts), n)]:
            decisions[token].append((expert, gates[token][expert]))
    loss = torch.zeros((), dtype=torch.float64)
    for position, x in enumerate(s.x):
        logits, target = margin_logits(config, weights["weight"], x, position, s.step)
        loss = loss - logits.log_softmax(-1)[target]
    return decisions, gates, {"margin": loss}


def s_base(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
    logits = torch.stack([weights["weight"] @ x for x in s.x])
    gates = list(logits.softmax(-1))
    prices = [0.0] * logits.shape[1]
    if s.step is not None:
        prices = sinkhorn_prices(config, logits.tolist())
    experts = (logits.detach() - torch.tensor(prices, dtype=torch.float64)).argmax(-1).tolist()
    return [[(e, p[e])] for e, p in zip(experts, gates, strict=True)], gates, {}


def sinkhorn_prices(config: Any, logits: list[list[float]]) -> list[float]:
    n_tokens, n_experts = len(logits), len(logits[0])
    room = math.ceil(n_tokens / n_experts)
    prices = [0.0] * n_experts
    heat = max(max(max(row) - min(row) for row in logits) / 8, config.temperature)
    n_rounds = 0
    for _ in range(config.iterations):
        mass = [0.0] * n_experts
        for row in logits:
            best = max(value - price for value, price in zip(row, prices, strict=True))
            parts = [math.exp((value - price - best) / heat) for value, price in zip(row, prices, strict=True)]
            for expert, part in enumerate(parts):
                mass[expert] += part / sum(parts)
        is_good = sum(max(m - room, 0.0) for m in mass) <= config.tolerance * n_tokens
        is_last = heat <= config.temperature
        if is_good and is_last:
            break
        if not is_good:
            prices = [max(price + 1.5 * heat * math.log(max(m, 1e-300) / room), 0.0) for price, m in zip(prices, mass, strict=True)]
        n_rounds += 1
        if not is_last and (is_good or n_rounds >= 100):
            heat, n_rounds = max(heat / 2, config.temperature), 0
    return prices


def sigmoid_bias(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
    decisions, gates = [], []
    for x in s.x:
        scores = (weights["weight"] @ x).sigmoid()
        biased = (scores + weights["selection_bias"]).tolist()
        chosen = sorted(range(len(scores)), key=lambda e: -biased[e])[: config.experts_per_token]
        total = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1.0
        decisions.append([(e, scores[e] / total) for e in chosen])
        gates.append(scores / scores.sum())
    return decisions, gates, {}


def fixed(expert_of: Callable[[Any, int, int, int], int]) -> Callable[..., Ruling]:
    def rule(config: Any, weights: dict[str, Tensor], s: Sequence) -> Ruling:
        n_experts = int(weights["n_experts"])
        experts = [expert_of(config, token, s.domain, n_experts) for token in s.ids]
        one = torch.ones((), dtype=torch.float64)
        return [[(e, one)] for e in experts], [torch.eye(n_experts, dtype=torch.float64)[e] for e in experts], {}

    return rule


def random_group_of(config: Any, token: int, domain: int, n_experts: int) -> int:
    group = domain % config.groups
    members = [e for e in range(n_experts) if group * n_experts // config.groups <= e < (group + 1) * n_experts // config.groups]
    return members[signed(mixed(mixed(token, config.seed) ^ group, 1)) % len(members)]


RULES: dict[str, Callable[..., Ruling]] = {
    "top1": softmax_top_k(1),
    "top2": softmax_top_k(2),
    "large_margin": large_margin,
    "expert_choice": expert_choice,
    "s_base": s_base,
    "sigmoid_bias": sigmoid_bias,
    "hash": fixed(lambda config, token, domain, n: signed(mixed(token, config.seed)) % n),
    "hard": fixed(lambda config, token, domain, n: domain % n),
    "random_groups": fixed(random_group_of),
}


def within_capacity(decisions: Decisions, n_experts: int, factor: float) -> tuple[Decisions, int]:
    """Serve tokens in order until an expert is full."""
    room = [math.ceil(factor * sum(map(len, decisions)) / n_experts)] * n_experts
    kept: Decisions = []
    for pairs in decisions:
        kept.append([pair for pair in pairs if room[pair[0]] > 0])
        for expert, _ in pairs:
            room[expert] -= 1
    return kept, sum(map(len, decisions)) - sum(map(len, kept))


def naive_layer(
    layer: MoELayer, config: Any, x_BTH: Tensor, inputs: ModelInputs, weights: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor], dict[str, Tensor], int]:
    """Return the layer's output, the gate probabilities of real tokens, the router's losses and the number of dropped pairs."""
    step = inputs.step if layer.training else None
    router = {name.removeprefix("router."): w for name, w in weights.items() if name.startswith("router.")}
    router["n_experts"] = torch.tensor(layer.experts.n_experts)
    out = [[torch.zeros(x_BTH.shape[2], dtype=torch.float64) for _ in row] for row in x_BTH]
    gates: list[Tensor] = []
    losses: dict[str, Tensor] = {}
    n_dropped = 0
    for row in range(len(x_BTH)):
        for document in sorted(set(inputs.documents_BT[row].tolist()) - {0}):
            places = (inputs.documents_BT[row] == document).nonzero().flatten().tolist()
            decisions, found, own = RULES[config.name](config, router, _sequence(layer, x_BTH, inputs, row, places, step))
            gates += found
            losses = {name: losses.get(name, 0.0) + loss for name, loss in own.items()}
            if layer.capacity_factor is not None and layer.training:
                decisions, dropped = within_capacity(decisions, layer.experts.n_experts, layer.capacity_factor)
                n_dropped += dropped
            for column, pairs, p in zip(places, decisions, found, strict=True):
                summed = sum((w * _expert(weights, e, x_BTH[row, column]) for e, w in pairs), out[row][column])
                out[row][column] = _through_residual_network(router, summed, p)
    result = torch.stack([torch.stack(row) for row in out])
    if layer.residual_mlp is not None:
        mix = (x_BTH @ weights["residual_mix.weight"].T + weights["residual_mix.bias"]).softmax(-1)
        inner = functional.gelu(x_BTH @ weights["residual_mlp.up.weight"].T + weights["residual_mlp.up.bias"], approximate="tanh")
        dense = inner @ weights["residual_mlp.down.weight"].T + weights["residual_mlp.down.bias"]
        result = result * mix[..., :1] + dense * mix[..., 1:]
    return result, gates, losses, n_dropped


def _sequence(layer: MoELayer, x_BTH: Tensor, inputs: ModelInputs, row: int, places: list[int], step: int | None) -> Sequence:
    assert inputs.domains_BT is not None
    assert inputs.row_keys_B is not None
    row_key = mixed(int(inputs.row_keys_B[row]), layer.layer)
    return Sequence(
        x=[x_BTH[row, column] for column in places],
        ids=[int(inputs.ids_BT[row, column]) for column in places],
        keys=[mixed(row_key ^ column, 0) for column in places],
        domain=int(inputs.domains_BT[row, places[0]]),
        step=step,
    )


def _expert(weights: dict[str, Tensor], expert: int, x: Tensor) -> Tensor:
    inner = weights["experts.up_weight"][expert] @ x + weights["experts.up_bias"][expert]
    return (
        weights["experts.down_weight"][expert] @ functional.gelu(inner, approximate="tanh") + weights["experts.down_bias"][expert]
    )


def _through_residual_network(router: dict[str, Tensor], g: Tensor, p: Tensor) -> Tensor:
    if "expert_residual.layers.0.up.weight" not in router:
        return g
    y = g
    for n in range(6):
        centred = y - y.mean()
        normed = (
            centred / (centred.square().mean() + 1e-5).sqrt() * router[f"expert_residual.layers.{n}.norm.weight"]
            + router[f"expert_residual.layers.{n}.norm.bias"]
        )
        inner = (router[f"expert_residual.layers.{n}.up.weight"] @ normed + router[f"expert_residual.layers.{n}.up.bias"]).relu()
        y = y + router[f"expert_residual.layers.{n}.down.weight"] @ inner + router[f"expert_residual.layers.{n}.down.bias"]
    return p.max() * y + (1 - p.max()) * g
