"""ZeRO's masters and moments in the host's memory: a rank's gradients go there once a step, and torch's fused AdamW updates them.

On a GPU that leaves weights, gradients and activations. Gradients add up on the GPU, are cut, summed and measured there as ever; a
rank's partition of them is copied at the step, and its updated weights come back, rounded on the host. Nothing is computed in
another order, and nothing is compiled. On a CPU the host's memory is the rank's own, so that nothing moves.

DeepSpeed's own form of this sums the norm in another order and wants an optimizer that it compiles.
Source: Ren et al. 2021, "ZeRO-Offload: Democratizing Billion-Scale Model Training", section 4, arXiv:2101.06840.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_HOST = torch.device("cpu")


def hold_on_host(zero: Any) -> None:
    """Move the masters of a DeepSpeed ZeRO optimizer to the host, before it has moments, and let each step follow them there."""
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        moved = master.detach().to(_HOST).requires_grad_()
        zero.single_partition_of_fp32_groups[index] = moved
        zero.optimizer.param_groups[index]["params"] = [moved]
    preflattened, clip = zero._get_preflattened_grad_partition, zero.unscale_and_clip_grads

    def gradients(index: int) -> Tensor:
        flat = preflattened(index)
        return (_flattened(zero, index) if flat is None else flat).to(_HOST)

    def clipped(partitions: list[Tensor], norm: Tensor) -> None:
        clip(partitions, norm.to(_HOST))

    zero._get_preflattened_grad_partition, zero.unscale_and_clip_grads = gradients, clipped


def _flattened(zero: Any, index: int) -> Tensor:
    """Return a group's gradients in one tensor, padded in the last partition, as DeepSpeed does where they are not yet in one."""
    group, pieces = zero.real_dp_process_group[index], zero.averaged_gradients[index]
    is_last = torch.distributed.get_rank(group) == torch.distributed.get_world_size(group) - 1
    flat: Tensor = zero.flatten_dense_tensors_aligned(pieces, int(zero.partition_size[index])) if is_last else zero.flatten(pieces)
    return flat
