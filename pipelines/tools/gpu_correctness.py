"""A device compared with the CPU: experts, attention, whole models with every router, and recomputation.

Each check takes a device and returns rows of (what, largest error as a share of the largest value, bound); on the CPU itself it
compares the CPU with itself, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, SpannedText, read_with_targets
from adapt.model.attention import Attention, Seen, attention_mask, seen_by
from adapt.model.batches import Batch, collate
from adapt.model.config import GPTConfig, Recompute
from adapt.model.experts import Experts
from adapt.model.gpt import GPT, materialize
from adapt.model.grouped_gemm import wants_brought
from adapt.model.routers.settings import RouterConfig
from adapt.model.token_positions import TokenPlaces
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig

_FP32_BOUND, _BF16_BOUND, _MODEL_BOUND = 1e-5, 0.03, 1e-3
_VOCABULARY, _MASK = 200, 4
_HIDDEN, _HEADS = 128, 2


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One comparison; `error` is a share of the largest value."""

    what: str
    error: float
    bound: float

    @property
    def is_right(self) -> bool:
        return self.error <= self.bound


def check_experts(device: torch.device) -> list[Compared]:
    """Compare outputs and every gradient of a layer's experts, some of them without tokens, in fp32 and bf16."""
    found = []
    for dtype, bound in ((torch.float32, _FP32_BOUND), (torch.bfloat16, _BF16_BOUND)):
        for n_tokens in (1, 37, 700):
            wanted = _run_experts(torch.device("cpu"), torch.float32, n_tokens, dtype)
            got = _run_experts(device, dtype, n_tokens, dtype)
            name = f"experts, {n_tokens} tokens, {str(dtype).removeprefix('torch.')}"
            found += [Compared(what=f"{name}, {key}", error=_error(got[key], value), bound=bound) for key, value in wanted.items()]
    return found


def check_attention(device: torch.device) -> list[Compared]:
    """Compare outputs and every gradient of attention over packed documents: the way the device takes, and the mask, in bf16."""
    inputs = _packed_batch().inputs
    wanted = _run_attention(torch.device("cpu"), torch.float32, attention_mask(inputs))
    there = inputs.to(device)
    found = []
    for seen in (seen_by(there, torch.bfloat16, _HIDDEN // _HEADS), attention_mask(there)):
        got = _run_attention(device, torch.bfloat16, seen)
        name = "attention in runs" if isinstance(seen, TokenPlaces) else "attention under a mask"
        found += [
            Compared(what=f"{name}, {key}", error=_error(got[key], value), bound=_BF16_BOUND) for key, value in wanted.items()
        ]
    return found


def check_models(device: torch.device) -> list[Compared]:
    """Compare loss and every gradient of a small model on packed rows, with every router, in fp32."""
    found = []
    for name, config in RouterConfig.choices().items():
        wanted = _run_model(torch.device("cpu"), config(), Recompute.NONE)
        got = _run_model(device, config(), Recompute.NONE)
        found.append(_worst(f"model, {name}", got, wanted))
    return found


def check_recomputation(device: torch.device) -> list[Compared]:
    """Compare gradients of a model that recomputes with those of one that does not, both on the device."""
    found = []
    for name, config in RouterConfig.choices().items():
        wanted = _run_model(device, config(), Recompute.NONE)
        for what in (Recompute.SELECTIVE, Recompute.FULL):
            found.append(_worst(f"{what.value} recomputation, {name}", _run_model(device, config(), what), wanted))
    return found


CHECKS: Mapping[str, Callable[[torch.device], list[Compared]]] = {
    "experts": check_experts,
    "attention": check_attention,
    "models": check_models,
    "recomputation": check_recomputation,
}


def _run_experts(device: torch.device, dtype: torch.dtype, n_tokens: int, rounded_to: torch.dtype) -> dict[str, Tensor]:
    """Run both ways; weights and inputs are those that `rounded_to` can hold, so that only the computing differs."""
    source = torch.Generator().manual_seed(1)
    experts = Experts(7, 32, 64)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0.0, 0.3, generator=source)
            parameter.copy_(parameter.to(rounded_to))
    x_NH = torch.randn(n_tokens, 32, generator=source).to(rounded_to)
    expert_K = torch.randint(0, 5, (n_tokens,), generator=source)  # the last two get nothing
    weight_K, grad_NH = torch.rand(n_tokens, generator=source), torch.randn(n_tokens, 32, generator=source).to(rounded_to)
    experts = _with_its_gemm(experts.to(device, dtype), device)
    x_NH = x_NH.to(device, dtype).requires_grad_()
    token_K = torch.arange(n_tokens, device=device)
    out_NH, _ = experts(x_NH, token_K, expert_K.to(device), weight_K.to(device))
    out_NH.backward(grad_NH.to(device, dtype))
    gradients = {f"gradient of {name}": _gradient(p) for name, p in experts.named_parameters()}
    return {"output": out_NH.detach(), "gradient of x": _gradient(x_NH), **gradients}


def _with_its_gemm(experts: Experts, device: torch.device) -> Experts:
    """Give experts the product that training would give them on this device."""
    if wants_brought(device):
        from adapt.train.brought_gemm import bring_gemm  # imports DeepSpeed

        bring_gemm(experts, device)
    return experts


def _run_attention(device: torch.device, dtype: torch.dtype, seen: Seen) -> dict[str, Tensor]:
    """Run both ways; weights and inputs are those that bf16 can hold, so that only the computing differs."""
    source = torch.Generator().manual_seed(3)
    layer = Attention(_HIDDEN, _HEADS)
    shape = (*_packed_batch().inputs.ids_BT.shape, _HIDDEN)
    x_BTH, grad_BTH = (torch.randn(shape, generator=source).to(torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.1, generator=source)
            parameter.copy_(parameter.to(torch.bfloat16))
    layer = layer.to(device, dtype)
    x_BTH = x_BTH.to(device, dtype).requires_grad_()
    out_BTH, _ = layer(x_BTH, seen)
    out_BTH.backward(grad_BTH.to(device, dtype))
    gradients = {f"gradient of {name}": _gradient(p) for name, p in layer.named_parameters()}
    return {"output": out_BTH.detach(), "gradient of x": _gradient(x_BTH), **gradients}


def _run_model(device: torch.device, router: RouterConfig, recompute: Recompute) -> dict[str, Tensor]:
    config = GPTConfig(
        n_layers=4, hidden_size=32, n_heads=2, context_length=64, vocab_size=_VOCABULARY, experts=[4], is_residual=True,
        router=router, init_std=0.1,
    )  # fmt: skip
    model = materialize(GPT(config), seed=2).to(device).train()
    model.set_recompute(recompute)
    batch = _packed_batch()
    even = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
    part = contribution(model, batch.to(device), part_counts(model, batch), even, ObjectiveConfig(), world_size=1)
    part.loss.backward()
    return {"loss": part.loss.detach(), **{name: _gradient(p) for name, p in model.named_parameters() if p.grad is not None}}


def _packed_batch() -> Batch:
    rows = []
    for row, lengths in enumerate(((20, 30), (50,), (9, 11, 13))):
        ids = [generator_for("gpu check", row, length).integers(5, _VOCABULARY, length) for length in lengths]
        rows.append([read_with_targets(SpannedText(ids_T=i, kinds_T=i % 3), LabelForm.CLM, _MASK) for i in ids])
    return collate(rows, step=1, row_keys=range(len(rows)))


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _error(found: Tensor, wanted: Tensor) -> float:
    difference = (found.detach().cpu().double() - wanted.detach().cpu().double()).abs().max()
    error = float(difference / wanted.detach().cpu().double().abs().max().clamp_min(1e-12))
    return error if error == error else float("inf")


def _worst(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Compared:
    """Return the tensor that differs most; values near zero are rounding, and are compared with the largest gradient there is."""
    scale = max(float(value.abs().max()) for name, value in wanted.items() if name != "loss")
    errors = {name: float((found[name].cpu() - value.cpu()).abs().max()) / scale for name, value in wanted.items()}
    errors["loss"] = _error(found["loss"], wanted["loss"])
    name = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else float("inf"))
    return Compared(what=f"{what}: {name}", error=errors[name], bound=_MODEL_BOUND)
