"""Parameter groups, the optimizer of what is trained, its moments as they begin, and what a step of it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapt.model.expert_parallel import is_stack
from adapt.train.lamb import Lamb
from adapt.train.optimizer_config import Algorithm, OptimizerConfig
from adapt.train.paged_adamw import PagedAdamW, Paging

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step did: the gradient's norm before clipping, and in fp16 the scale of its loss.

    Without a norm the scaled gradient overflowed and the step was skipped: weights and moments are as they were.
    """

    grad_norm: float | None
    loss_scale: float | None = None

    @property
    def is_skipped(self) -> bool:
        return self.grad_norm is None


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the parameters that are trained into those with weight decay (matrices) and those without (biases, norms).

    Where token tables have a learning rate of their own they are a group too; `lr_ratio` is what a group's rate is multiplied by.
    """
    tables = _token_tables(model) if config.embedding_lr_ratio != 1 else frozenset()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    apart: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = name.endswith("bias") or "norm" in name
        (apart if id(parameter) in tables else plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": apart, "weight_decay": config.weight_decay, "lr_ratio": config.embedding_lr_ratio},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(groups: Sequence[dict[str, Any]], lr: float) -> None:
    """Give each of an optimizer's groups its learning rate of a step."""
    for group in groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def _token_tables(model: nn.Module) -> frozenset[int]:
    """Return which parameters have a row for each token: input embeddings and the output layer, often the same."""
    n_tokens = getattr(model, "vocab_size", None)
    rows = {nn.Embedding: "num_embeddings", nn.Linear: "out_features"}
    return frozenset(
        id(module.weight)
        for module in model.modules()
        for kind, size in rows.items()
        if isinstance(module, kind) and getattr(module, size) == n_tokens
    )


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, groups: list[dict[str, Any]] | None = None, paging: Paging | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer of what is trained; `groups` are those of `parameter_groups` in a form that an engine wants.

    With `paging` its state will lie in a file.
    """
    groups, betas = groups or parameter_groups(model, config), (config.beta1, config.beta2)
    if config.algorithm is Algorithm.LAMB:
        stacks = () if getattr(model, "has_frozen_base", False) else model.named_parameters()  # factors are whole matrices
        stacked = frozenset(id(parameter) for name, parameter in stacks if ".experts." in name)
        return Lamb(groups, lr=config.largest_lr, betas=betas, eps=config.eps, stacked=stacked)
    if paging is not None:
        skipped = model.named_parameters() if config.skip_idle_experts else ()
        ids = frozenset(id(stack) for name, stack in skipped if is_stack(name))
        return PagedAdamW(groups, lr=config.largest_lr, betas=betas, eps=config.eps, paging=paging, stacks=ids)
    return torch.optim.AdamW(groups, lr=config.largest_lr, betas=betas, eps=config.eps, fused=True)


def create_moments(optimizer: torch.optim.Optimizer, groups: Sequence[dict[str, Any]], steps_done: int) -> None:
    """Give every parameter of these groups its state as after `steps_done` updates; moments in a file stay as they are."""
    for group in groups:
        for parameter in group["params"]:
            if isinstance(optimizer, PagedAdamW):
                optimizer.state[parameter] = optimizer.moments_at(parameter, steps_done)
            else:
                optimizer.state[parameter] = moments_at(parameter, group, steps_done)


def moments_at(parameter: Tensor, group: dict[str, Any], steps_done: int) -> dict[str, Tensor]:
    """Return the state of a parameter as after `steps_done` updates, its moments at 0.

    A fused optimizer reads `step` on the parameter's device, in fp32. Others read it on the host: there a GPU would be waited for.
    """
    device = parameter.device if group.get("fused") else torch.device("cpu")
    step = torch.full((), float(steps_done), dtype=torch.float32, device=device)
    return {"step": step, **{which: torch.zeros_like(parameter) for which in MOMENTS}}
