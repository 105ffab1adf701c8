"""Optimizer settings, parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapt.train.lamb import Lamb
from adapt.train.optimizer_config import Algorithm, OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the parameters that are trained into those with weight decay (matrices) and those without (biases, norms)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = name.endswith("bias") or "norm" in name
        (plain if is_plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig, groups: list[dict[str, Any]] | None = None) -> torch.optim.Optimizer:
    """Make the optimizer of what is trained; `groups` are those of `parameter_groups` in a form that an engine wants."""
    groups, betas = groups or parameter_groups(model, config), (config.beta1, config.beta2)
    if config.algorithm is Algorithm.LAMB:
        stacked = frozenset(id(parameter) for name, parameter in model.named_parameters() if ".experts." in name)
        return Lamb(groups, lr=config.lr, betas=betas, eps=config.eps, stacked=stacked)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
