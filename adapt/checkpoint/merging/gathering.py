"""Other ways from experts to one MLP than means: their most important neurons, and singular vectors of matched ones.

Legend: E experts, F their width, H hidden size, A input weights of a neuron (a row of each of `ins`, and its biases).

Both start from the sum of all experts times their mean weights. Each neuron is a term of it: its output vector times its
activation. Xue et al. 2022 (One Student Knows All Experts Know, arXiv:2201.10890) gather experts by the largest rows and by SVD, of
each expert's matrices apart. Here the SVD is of the neurons that were matched over all experts. Where activations are taken as
linear, E matched neurons are a matrix [H, A] of rank E, and its leading singular vectors are the neurons that change it least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapt.checkpoint.merging.mlps import MLP, aligned, check_groups, side_by_side


def most_important(mlps: Sequence[MLP], weights: Sequence[float], groups: int) -> MLP:
    """Return an MLP of the neurons of all experts that write most, `groups` times an expert's width of them.

    A neuron's importance is its expert's weight times the norms of its rows of `ins` and of what it writes.

    Raises:
        ConfigError: there are more groups than experts.
    """
    check_groups(groups, mlps)
    whole = side_by_side([mlp.times(weight) for mlp, weight in zip(mlps, weights, strict=True)])
    importance_F = whole.down.norm(dim=0)
    for index, rows in enumerate(whole.ins):
        bias_F = whole.in_biases[index] if whole.in_biases else rows.new_zeros(len(rows))
        importance_F = importance_F * (rows.square().sum(1) + bias_F.square()).sqrt()
    kept = importance_F.topk(groups * mlps[0].width).indices.sort().values
    return whole.permuted(kept)


def leading_directions(mlps: Sequence[MLP], weights: Sequence[float], groups: int, *, is_aligned: bool) -> MLP:
    """Return an MLP that has, for each neuron of the most used expert and those matched to it, `groups` leading singular vectors.

    The input weights of a neuron keep the weighted mean norm of the neurons that it replaces, since activations are not linear.

    Raises:
        ConfigError: there are more groups than experts.
    """
    check_groups(groups, mlps)
    first = max(range(len(mlps)), key=lambda expert: (weights[expert], -expert))
    matched = [aligned(mlp, mlps[first]) if is_aligned and number != first else mlp for number, mlp in enumerate(mlps)]
    weight_E = torch.tensor(weights, dtype=torch.float32)
    reads_FEA = torch.stack([_reads(mlp) for mlp in matched], dim=1)
    writes_FHE = torch.stack([mlp.down.t() for mlp in matched], dim=2) * weight_E
    # The product [H, A] has rank E: its singular vectors follow from those of a product of two triangles [E, E].
    left_FHE, left_FEE = torch.linalg.qr(writes_FHE)
    right_FAE, right_FEE = torch.linalg.qr(reads_FEA.transpose(1, 2))
    u_FEE, sizes_FE, v_FEE = torch.linalg.svd(left_FEE @ right_FEE.transpose(1, 2))
    write_FHG = (left_FHE @ u_FEE)[:, :, :groups] * sizes_FE[:, None, :groups]
    read_FAG = (right_FAE @ v_FEE.transpose(1, 2))[:, :, :groups]
    share_E = functional.normalize(weight_E, p=1, dim=0)
    mean_FA = torch.einsum("fea,e->fa", reads_FEA, share_E)
    norm_F = torch.einsum("fe,e->f", reads_FEA.norm(dim=2), share_E)
    sign_FG = torch.where(torch.einsum("fag,fa->fg", read_FAG, mean_FA) < 0, -1.0, 1.0)
    scale_FG = sign_FG * norm_F.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    found = [
        _mlp_of(read_FAG[:, :, g] * scale_FG[:, g, None], write_FHG[:, :, g] / scale_FG[:, g, None], mlps[0]) for g in range(groups)
    ]
    biases = [mlp.down_bias * weight for mlp, weight in zip(mlps, weights, strict=True) if mlp.down_bias is not None]
    whole = side_by_side(found)
    bias = torch.stack(biases).sum(0) if biases else None
    return MLP(ins=whole.ins, in_biases=whole.in_biases, down=whole.down, down_bias=bias)


def _reads(mlp: MLP) -> Tensor:
    """Return the input weights of each neuron, [F, A]."""
    return torch.cat([*mlp.ins, *(bias[:, None] for bias in mlp.in_biases)], dim=1)


def _mlp_of(reads_FA: Tensor, writes_FH: Tensor, like: MLP) -> MLP:
    *ins, biases_F = reads_FA.split([*(rows.shape[1] for rows in like.ins), len(like.in_biases)], dim=1)
    return MLP(ins=tuple(ins), in_biases=biases_F.unbind(1), down=writes_FH.t())
