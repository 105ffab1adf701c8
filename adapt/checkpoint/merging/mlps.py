"""Two-layer MLPs as matrices: means of several in a common order of neurons, MLPs side by side, and wider ones that say the same.

Legend: F width, H hidden size.

Neurons can be permuted without a change of the function, and experts trained from random weights have theirs in no common order. So
before a mean each expert's are matched to a reference's: the permutation with the largest sum of products of matched neurons'
weights, a linear assignment (Ainsworth, Hayase and Srinivasa 2022, Git Re-Basin, section 3.2, arXiv:2209.04836). Means of experts
weighted by how often a router uses them: Li et al. 2023 (Merge, Then Compress), arXiv:2310.01334.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adapt.core.errors import ConfigError
from adapt.core.runtime import seed_for


@dataclass(frozen=True, kw_only=True)
class MLP:
    """down(act(in(x))) + bias, or with two `ins` down(act(gate(x)) * up(x)): matrices `ins` [F, H] and `down` [H, F], in fp32.

    `in_biases` [F] stand for `ins` in order, and are absent where a family has none, like `down_bias` [H].
    """

    ins: tuple[Tensor, ...]
    down: Tensor
    in_biases: tuple[Tensor, ...] = ()
    down_bias: Tensor | None = None

    @property
    def width(self) -> int:
        return self.down.shape[1]

    def permuted(self, order_F: Tensor) -> MLP:
        """Return the same function with its neurons in another order."""
        return MLP(
            ins=tuple(one[order_F] for one in self.ins),
            in_biases=tuple(one[order_F] for one in self.in_biases),
            down=self.down[:, order_F],
            down_bias=self.down_bias,
        )

    def times(self, factor: float) -> MLP:
        """Return an MLP whose output is multiplied by a factor."""
        bias = None if self.down_bias is None else self.down_bias * factor
        return MLP(ins=self.ins, in_biases=self.in_biases, down=self.down * factor, down_bias=bias)


def aligned(mlp: MLP, reference: MLP) -> MLP:
    """Return an MLP with its neurons matched to those of a reference of the same width."""
    from scipy.optimize import linear_sum_assignment

    similar_FF = reference.down.t() @ mlp.down
    for one, other in zip((*reference.ins, *reference.in_biases), (*mlp.ins, *mlp.in_biases), strict=True):
        similar_FF = similar_FF + (one @ other.t() if one.dim() == 2 else torch.outer(one, other))
    _, order_F = linear_sum_assignment(similar_FF.numpy(), maximize=True)
    return mlp.permuted(torch.from_numpy(order_F))


def mean_of(mlps: Sequence[MLP], weights: Sequence[float]) -> MLP:
    """Return the mean of MLPs' matrices, weighted; weights that are all 0 count the same."""
    total = sum(weights)
    shares = [weight / total for weight in weights] if total > 0 else [1 / len(mlps)] * len(mlps)

    def mean(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part * share for part, share in zip(parts, shares, strict=True)]).sum(0)

    biases = [mlp.down_bias for mlp in mlps if mlp.down_bias is not None]
    return MLP(
        ins=tuple(mean(parts) for parts in zip(*(mlp.ins for mlp in mlps), strict=True)),
        in_biases=tuple(mean(parts) for parts in zip(*(mlp.in_biases for mlp in mlps), strict=True)),
        down=mean([mlp.down for mlp in mlps]),
        down_bias=mean(biases) if biases else None,
    )


def merged(mlps: Sequence[MLP], weights: Sequence[float], groups: int, *, is_even: bool, is_aligned: bool) -> MLP:
    """Return one MLP for experts whose outputs have these weights on average: a mean for each group, the means side by side.

    Experts are dealt into groups in the order of their weights. A group's mean is scaled by the sum of its experts' weights.

    Raises:
        ConfigError: there are more groups than experts.
    """
    check_groups(groups, mlps)
    by_weight = sorted(range(len(mlps)), key=lambda expert: (-weights[expert], expert))
    found = []
    for group in range(groups):
        members = by_weight[group::groups]
        reference = mlps[members[0]]
        ordered = [reference, *(aligned(mlps[e], reference) if is_aligned else mlps[e] for e in members[1:])]
        counted = [1.0 if is_even else weights[expert] for expert in members]
        found.append(mean_of(ordered, counted).times(sum(weights[expert] for expert in members)))
    return side_by_side(found)


def check_groups(groups: int, mlps: Sequence[MLP]) -> None:
    """Raise ConfigError where there are more groups than experts."""
    if groups > len(mlps):
        raise ConfigError(f"groups: {groups} of {len(mlps)} experts; a group needs an expert at least")


def side_by_side(mlps: Sequence[MLP]) -> MLP:
    """Return one MLP whose output is the sum of these: all their neurons, and nothing is lost."""
    biases = [mlp.down_bias for mlp in mlps if mlp.down_bias is not None]
    return MLP(
        ins=tuple(torch.cat(parts) for parts in zip(*(mlp.ins for mlp in mlps), strict=True)),
        in_biases=tuple(torch.cat(parts) for parts in zip(*(mlp.in_biases for mlp in mlps), strict=True)),
        down=torch.cat([mlp.down for mlp in mlps], dim=1),
        down_bias=torch.stack(biases).sum(0) if biases else None,
    )


def widened(mlp: MLP, width: int, seed: int, name: str) -> MLP:
    """Return the same function with more neurons: the new ones read like the others, write nothing yet, and learn."""
    n_new = width - mlp.width
    if not n_new:
        return mlp
    generator = torch.Generator().manual_seed(seed_for(seed, "widened", name))
    ins = []
    for one in mlp.ins:
        drawn = torch.empty(n_new, one.shape[1]).normal_(0.0, float(one.std()), generator=generator)
        ins.append(torch.cat([one, drawn]))
    return MLP(
        ins=tuple(ins),
        in_biases=tuple(functional.pad(one, (0, n_new)) for one in mlp.in_biases),
        down=functional.pad(mlp.down, (0, n_new)),
        down_bias=mlp.down_bias,
    )
