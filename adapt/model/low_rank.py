"""A low-rank update (LoRA) of one tensor, and which tensors of a Hugging Face model can have one.

Legend: E experts, O outputs, I inputs, R rank.

Source: Hu et al. 2021 (LoRA, section 4.1, arXiv:2106.09685). Routed experts are one tensor [E, O, I]; their factors lie in the
layout of PEFT: A [E * R, I] has the experts one after the other, B [O, R * E] has each rank's experts side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.counting import hf_kind_of
from adapt.model.lora_config import DEFAULT_TARGETS, LoraConfig, LoraTarget

_TRANSPOSED = ".attn.c_attn.weight"
_OF_KIND = {
    "attention": LoraTarget.ATTENTION,
    "mlp": LoraTarget.MLP,
    "experts": LoraTarget.EXPERTS,
    "router": LoraTarget.ROUTER,
}


@dataclass(frozen=True, kw_only=True)
class LowRankUpdate:
    """What is added to a tensor: `scale` times B A, for each expert where the tensor stacks experts. Factors are fp32.

    `is_transposed`: the tensor stacks experts with inputs before outputs.
    """

    shape: tuple[int, ...]
    a: Tensor
    b: Tensor
    scale: float
    is_transposed: bool = False

    def product(self) -> Tensor:
        """Return the change in full, fp32, in the tensor's shape."""
        if len(self.shape) == 2:
            return (self.b @ self.a) * self.scale
        n_experts = self.shape[0]
        a_ERI = self.a.reshape(n_experts, -1, self.a.shape[1])
        b_EOR = self.b.reshape(self.b.shape[0], -1, n_experts).permute(2, 0, 1)
        change_EOI = torch.bmm(b_EOR, a_ERI) * self.scale
        return change_EOI.transpose(1, 2) if self.is_transposed else change_EOI


def group_of(name: str, shape: Sequence[int]) -> LoraTarget | None:
    """Return the group of a Hugging Face model's parameter; None of what can have no low-rank update: vectors, embeddings."""
    is_matrix = len(shape) >= 2 and min(shape[-2:]) > 1 and not name.endswith("bias")
    return _OF_KIND.get(hf_kind_of(name)) if is_matrix else None


def targeted(shapes: Mapping[str, Sequence[int]], config: LoraConfig, where: str) -> dict[str, LoraTarget]:
    """Return the group of every parameter that is to be changed, by name.

    Raises:
        ConfigError: a group that the settings name has no parameter in this model, which `where` names.
    """
    if any(name.endswith(_TRANSPOSED) for name in shapes):
        raise ConfigError(
            f"trains=lora: {where} keeps its matrices with inputs first, as GPT-2 does, which deltas do not know; use all or dense"
        )
    groups = {name: group for name, shape in shapes.items() if (group := group_of(name, shape)) is not None}
    there = set(groups.values())
    for group in config.targets or ():
        if group not in there:
            has = ", ".join(target.value for target in LoraTarget if target in there)
            raise ConfigError(f"lora.targets: {where} has no parameters of the group '{group.value}'; it has: {has}")
    wanted = set(config.targets or DEFAULT_TARGETS)
    return {name: group for name, group in groups.items() if group in wanted}


def factor_sizes(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Return how many numbers the two factors of a tensor's change have, A and B."""
    n_experts = math.prod(shape[:-2])
    return n_experts * rank * shape[-1], n_experts * rank * shape[-2]


def trained_by_group(shapes: Mapping[str, Sequence[int]], groups: Mapping[str, LoraTarget], rank: int) -> dict[LoraTarget, int]:
    """Return how many parameters are trained in each group."""
    found = {target: 0 for target in LoraTarget if target in groups.values()}
    for name, group in groups.items():
        found[group] += sum(factor_sizes(shapes[name], rank))
    return found


def said_of_groups(by_group: Mapping[LoraTarget, int], n_total: int) -> str:
    """Say in words what is trained, of a model with `n_total` parameters."""
    n_trained = sum(by_group.values())
    parts = ", ".join(f"{target.value} {count:,}" for target, count in by_group.items())
    return f"{n_trained:,} parameters are trained beside {n_total:,} frozen ones ({100 * n_trained / n_total:.2f} %): {parts}"


def layer_free(names: Iterable[str]) -> list[str]:
    """Return the endings of parameters' names behind their layer's number, each once, sorted."""
    return sorted({name.split(".layers.", 1)[1].split(".", 1)[1] for name in names})
