"""The training objective: parts, each a sum over tokens with its own global count, returned as a ledger.

Legend: B rows, T positions, N positions with a target, H hidden size, E experts, L MoE layers.

total = sum over parts of weight * sum / count, where the count is taken over the whole optimizer step and every rank. A
micro-batch contributes local_sum * world_size / count (the engine averages over ranks), so that nothing depends on how the
step was cut. A part with count 0 contributes 0.

Balance (Fedus et al. 2021, arXiv:2101.03961, equation 4, normalised so that 1.0 is perfectly even): E * sum_e P_e * F_e with P
the mean gate probability and F the share of tokens. As a product of two means it is not additive over micro-batches; the
scopes `step` (F from the previous step, detached) and `sequence` (both within one document) are, `microbatch` is not. A router's
own losses are parts of their own, weighted by the router's settings; they and the balance count real tokens times MoE layers.

A reading may carry a weight (that of a soft label): it multiplies each of its targets in the sum and in the count alike. A part's
coefficient may follow a schedule over the run: a function of the step only.

Where a teacher is given, the divergence of its next-token distributions from the student's (`adapt.model.distillation`) is one more
part, over the targets of all kinds or of text only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapt.core.allocator import given_back
from adapt.core.errors import TrainingError
from adapt.model.batches import Batch
from adapt.model.distillation import Teacher
from adapt.model.health import LayerSums
from adapt.model.inputs import CausalBase, LayerRouting, ModelOutput
from adapt.model.nll import nll_of_logits
from adapt.objective_config import BalanceScope, ObjectiveConfig

PARTS = ("context", "prompt", "pseudo_label", "balance")
_CONTEXT, _BALANCE = PARTS.index("context"), PARTS.index("balance")
LOGIT_ELEMENTS = 1 << 27  # 512 MB of fp32 logits at a time


@dataclass(frozen=True, kw_only=True)
class PartValue:
    """One line of a ledger: value = sum / count, 0 where the count is 0."""

    sum: float
    count: float
    weight: float

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one micro-batch adds: the loss to differentiate, part by part, and plain sums for the ledger and router statistics."""

    losses_P: Tensor
    sums_P: Tensor
    layers: tuple[LayerSums, ...]

    @property
    def loss(self) -> Tensor:
        return self.losses_P.sum()


def parts_of(model: CausalBase, teacher: Teacher | None = None) -> tuple[str, ...]:
    """Return the names of all parts: those of every model, its routers' own losses, and the divergence from a teacher."""
    return (*PARTS, *model.router_traits.loss_weights, *(() if teacher is None else (teacher.part,)))


def part_weights(model: CausalBase, config: ObjectiveConfig, teacher: Teacher | None = None) -> Tensor:
    """Return the coefficient of every part, in the order of `parts_of`."""
    w, own = config.weights, model.router_traits.loss_weights.values()
    taught = [] if teacher is None else [teacher.weight]
    return torch.tensor(
        [w.of("context"), w.of("prompt"), w.pseudo_label, config.balance.weight, *own, *taught], dtype=torch.float64
    )


def part_counts(model: CausalBase, batch: Batch, teacher: Teacher | None = None) -> Tensor:
    """Add up the weights of the targets of each part; those of routers count real tokens times MoE layers, if there are any.

    The divergence from a teacher counts the targets of all kinds, or of text.
    """
    places = batch.target_places()
    counts = torch.zeros(len(parts_of(model, teacher)), dtype=torch.float64)
    for kind, of_kind_N in enumerate(places.of_kind):
        counts[kind] = len(of_kind_N)
        if batch.weights_BT is not None:
            counts[kind] = batch.weights_BT.flatten()[places.all_N][of_kind_N].double().sum()
    counts[_BALANCE:] = float(len(batch.inputs.token_places().real_N)) * len(model.expert_counts)
    counts[_BALANCE] *= model.router_traits.has_balance_loss
    if teacher is not None:
        counts[-1] = counts[_CONTEXT] if teacher.is_of_text else counts[:_BALANCE].sum()
    return counts


def contribution(
    model: CausalBase,
    batch: Batch,
    counts_P: Tensor,
    lagged_shares_LE: Sequence[Tensor],
    config: ObjectiveConfig,
    world_size: int,
    teacher: Teacher | None = None,
) -> Contribution:
    """Run a micro-batch and return its additive share of the objective.

    A batch of padding only gives a zero gradient to every parameter, as ranks that reduce all gradients need.
    `counts_P` are the step's global counts; `lagged_shares_LE` the previous step's share of tokens by expert, per layer.
    """
    output = model(batch.inputs)
    zero = output.hidden_BTH.new_zeros((), dtype=torch.float32)
    balance = zero
    if model.router_traits.has_balance_loss:
        balance = _balance_sum(output.routing, lagged_shares_LE, config.balance.scope, zero)
    own = [_router_loss_sum(output.routing, name, zero) for name in model.router_traits.loss_weights]
    *of_kind, taught = _token_sums(model, batch, output, teacher)
    sums = [*of_kind, balance, *own, *([] if teacher is None else [taught])]
    scale = part_weights(model, config, teacher) / counts_P.clamp_min(1.0) * (counts_P > 0)
    losses = torch.stack([part * s for part, s in zip(sums, scale.tolist(), strict=True)]) * world_size
    return Contribution(
        losses_P=losses,
        sums_P=torch.stack([part.detach().double() for part in sums]),
        layers=tuple(LayerSums.of(report) for report in output.routing),
    )


def ledger_from(
    model: CausalBase,
    sums_P: Tensor,
    counts_P: Tensor,
    layers: Sequence[LayerSums],
    config: ObjectiveConfig,
    teacher: Teacher | None = None,
) -> dict[str, PartValue]:
    """Build the step's ledger from global sums; balance is E * sum_e P_e * F_e of the step itself, whatever the scope."""
    weights = part_weights(model, config, teacher)
    sums = sums_P.tolist()
    if layers:
        sums[_BALANCE] = sum(layer.balance() for layer in layers) / len(layers) * float(counts_P[_BALANCE])
    return {
        part: PartValue(sum=sums[i], count=float(counts_P[i]), weight=float(weights[i]))
        for i, part in enumerate(parts_of(model, teacher))
    }


def ledger_total(ledger: dict[str, PartValue]) -> float:
    """Return the weighted sum of a ledger's values."""
    return sum(part.weight * part.value for part in ledger.values())


def check_balance_gradient(model: CausalBase, batch: Batch, config: ObjectiveConfig) -> None:
    """Make sure that the balance loss, where it counts, can move every router; an empty batch says nothing.

    Shares that rise from expert to expert stand in for those of a step, which may be even: then the true gradient is zero. A
    collective where ranks share experts: what backward computes again exchanges tokens again, also on a rank whose batch is empty.

    Raises:
        TrainingError: a layer's gradient is zero.
    """
    if config.balance.weight == 0 or not model.router_traits.has_balance_loss:
        return
    reports = model(batch.inputs).routing
    says_something = bool(batch.inputs.documents_BT.any())
    for layer, (report, parameters) in enumerate(zip(reports, model.gates(), strict=True)):
        n_experts = report.probs_NE.shape[1]
        rising_E = torch.arange(1, n_experts + 1, device=report.probs_NE.device) * 2 / (n_experts * (n_experts + 1))
        balance = _balance_sum([report], [rising_E], BalanceScope.STEP, report.probs_NE.new_zeros(()))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = torch.autograd.grad(balance, trained, allow_unused=True) if balance.requires_grad and trained else ()
        if says_something and not any(gradient is not None and bool(gradient.any()) for gradient in gradients):
            raise TrainingError(
                f"loss/balance: objective.balance.weight is {config.balance.weight}, but the router of MoE layer {layer} gets no "
                "gradient from it; set it to 0, or mend the router's probs_NE"
            )


def _token_sums(model: CausalBase, batch: Batch, output: ModelOutput, teacher: Teacher | None) -> list[Tensor]:
    """Return the sum of each kind's losses, then that of the divergences from a teacher (0 without one)."""
    places = batch.target_places()
    hidden_NH = output.hidden_BTH.flatten(0, 1)[places.all_N]
    targets_N = batch.targets_BT.flatten()[places.all_N]
    if teacher is None:
        nll_N = token_nll(model, hidden_NH, targets_N)
        kl_N = nll_N.new_zeros(len(nll_N))
    else:
        nll_N, kl_N = _taught_nll(model, hidden_NH, targets_N, teacher, teacher.hidden(batch.inputs).flatten(0, 1)[places.all_N])
    if batch.weights_BT is not None:
        weights_N = batch.weights_BT.flatten()[places.all_N]
        nll_N, kl_N = nll_N * weights_N, kl_N * weights_N
    if teacher is not None and teacher.is_of_text:
        kl_N = kl_N[places.of_kind[_CONTEXT]]
    return [*(nll_N[of_kind_N].sum() for of_kind_N in places.of_kind), kl_N.sum()]


@torch.no_grad()
def mean_loss(model: CausalBase, batches: Iterable[Batch]) -> float:
    """Return a model's mean negative log-likelihood in nats a target over batches; 0 where there are none."""
    total, count = 0.0, 0
    for batch in batches:
        places = batch.target_places()
        nll_N = token_nll(
            model, model(batch.inputs).hidden_BTH.flatten(0, 1)[places.all_N], batch.targets_BT.flatten()[places.all_N]
        )
        total, count = total + float(nll_N.double().sum()), count + len(nll_N)
    return total / count if count else 0.0


def _taught_nll(
    model: CausalBase, hidden_NH: Tensor, targets_N: Tensor, teacher: Teacher, taught_NH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each target's negative log-likelihood and the divergence from the teacher there, from one set of logits."""

    def of_chunk(hidden: Tensor, targets: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(hidden)
        return nll_of_logits(logits, targets), teacher.divergence(logits, taught)

    rows = max(LOGIT_ELEMENTS // model.vocab_size, 1)
    if len(hidden_NH) <= rows:
        return of_chunk(hidden_NH, targets_N, taught_NH)
    chunks = zip(hidden_NH.split(rows), targets_N.split(rows), taught_NH.split(rows), strict=True)
    nll, kl = zip(*(checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
    return torch.cat(nll), torch.cat(kl)


def token_nll(model: CausalBase, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Return the fp32 negative log-likelihood of each target; logits exist for one chunk of positions at a time.

    Where several chunks are needed, each is computed again in the backward pass instead of being kept."""

    def chunk_nll(hidden: Tensor, targets: Tensor) -> Tensor:
        with given_back():
            logits_NV = model.logits(hidden)
        return nll_of_logits(logits_NV, targets)

    rows = max(LOGIT_ELEMENTS // model.vocab_size, 1)
    if len(hidden_NH) <= rows:
        return chunk_nll(hidden_NH, targets_N)
    chunks = zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([checkpoint(chunk_nll, h, t, use_reentrant=False) for h, t in chunks])


def _balance_sum(reports: Sequence[LayerRouting], lagged_LE: Sequence[Tensor], scope: BalanceScope, zero: Tensor) -> Tensor:
    total = zero
    for report, lagged_E in zip(reports, lagged_LE, strict=True):
        probs = report.probs_NE
        n_experts = probs.shape[-1]
        if scope is BalanceScope.STEP:
            part = n_experts * (probs.sum(0) * lagged_E.to(probs.device, probs.dtype, non_blocking=True)).sum()
        elif scope is BalanceScope.SEQUENCE:
            part = _sequence_balance(report)
        else:
            shares_E = report.counts_E.to(probs) / report.counts_E.sum().clamp_min(1)
            part = n_experts * (probs.sum(0) * shares_E).sum()
        total = total + part
    return total


def _router_loss_sum(reports: Sequence[LayerRouting], name: str, zero: Tensor) -> Tensor:
    """Add up one of the routers' own losses over the layers; at inference there are none."""
    return sum((report.losses[name] for report in reports if report.losses), zero)


def _sequence_balance(report: LayerRouting) -> Tensor:
    """Sum over documents of n_tokens * E * sum_e P_e * F_e, both taken within the document."""
    probs = report.probs_NE
    n_experts = probs.shape[-1]
    _, document_N = report.sequence_ids_N.unique(return_inverse=True)
    n_documents = int(document_N.max()) + 1 if len(document_N) else 0
    prob_sums_DE = probs.new_zeros(n_documents, n_experts).index_add(0, document_N, probs)
    routed = functional.one_hot(report.expert_K, n_experts).to(probs)
    counts_DE = probs.new_zeros(n_documents, n_experts).index_add(0, document_N[report.token_K], routed)
    shares_DE = counts_DE / counts_DE.sum(-1, keepdim=True).clamp_min(1)
    return n_experts * (prob_sums_DE * shares_DE).sum()
