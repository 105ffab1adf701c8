"""DeepSpeed's copies of gradients, and masters, in files in place of memory.

DeepSpeed copies a gradient several times on its way into the update: into a bucket, into a flat tensor that ranks add up, into the
rank's partition, and to fp64 for its norm. All these lie in files here, made once at the start; only the first form, which autograd
makes for one parameter at a time, is in memory. Nothing is computed in another way or order. Where masters would have the weights'
format they are the weights: a rank's partition of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.train.file_tensors import TensorFiles, in_buffer
from adapt.train.idle_experts import runs_in_partitions
from adapt.train.paged_adamw import Paging

_FP32, _FP64 = torch.float32.itemsize, torch.float64.itemsize


def files_for_gradients(paging: Paging) -> TensorFiles:
    """Return what makes the files of a rank's gradients."""
    place = Path(f"{paging.place}-gradients")
    return TensorFiles(place, "gradients", "offload.optimizer=none")


def share_masters(zero: Any) -> None:
    """Let ZeRO's masters be its weights, for groups whose weights are fp32; the optimizer then updates the weights themselves."""
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        own = zero.parallel_partitioned_bit16_groups[index][torch.distributed.get_rank(zero.real_dp_process_group[index])]
        if own.dtype is master.dtype:
            master.data = own


def page_partitions(zero: Any, paging: Paging) -> None:
    """Keep in files what ZeRO makes of the gradients that autograd hands to it: buckets, sums over ranks, the rank's partition.

    Raises:
        ConfigError: the disk has too little space.
    """
    files = files_for_gradients(paging)
    sizes = [parameter.numel() for group in zero.bit16_groups for parameter in group]
    zero.reduce_bucket_size = min(zero.reduce_bucket_size, sum(sizes))  # more never comes together
    bucket = files(zero.reduce_bucket_size * _FP32)
    summed = files(max(zero.reduce_bucket_size * _FP32, max(sizes) * _FP64))  # the norm comes later, so it may take the same place
    partitions = [files(int(size) * _FP32) for size in zero.partition_size]
    zero._use_compact_grad_partition_buffer = lambda group_index: True  # add into the partition at once, as with rounded weights

    def lent(buffer: Tensor) -> Callable[..., AbstractContextManager[Any]]:
        return lambda *_: in_buffer(buffer, paging.least_bytes)

    _within(zero, "setup_buckets", lent(bucket))
    _within(zero, "flatten", lent(summed))
    _within(zero, "scaled_global_norm", lent(summed))
    _within(zero, "_build_compact_grad_partition_buffer", lambda index: in_buffer(partitions[index], paging.least_bytes))
    zero.optimizer.expert_runs = runs_in_partitions(zero, zero.optimizer.stacks)
    if not zero.partition_gradients:
        attribute = "grad_accum" if zero.use_grad_accum_attribute else "grad"
        page_whole([parameter for group in zero.bit16_groups for parameter in group], files, attribute, paging.least_bytes)


def page_unpartitioned(engine: Any, parameters: Sequence[nn.Parameter], paging: Paging) -> None:
    """Keep in files the gradients of an engine without ZeRO, and the flat tensors in which ranks add them up.

    Raises:
        ConfigError: the disk has too little space.
    """
    files = files_for_gradients(paging)
    page_whole(parameters, files, "grad", paging.least_bytes)
    summed = files(sum(parameter.numel() for parameter in parameters) * _FP32)  # by one rank too
    _within(engine, "flatten", lambda *_: in_buffer(summed, paging.least_bytes))


def page_whole(parameters: Sequence[nn.Parameter], files: TensorFiles, attribute: str, least_bytes: int) -> None:
    """Keep each parameter's fp32 gradient, under `attribute`, in a file from the moment at which autograd has made it."""
    for parameter in parameters:
        n_bytes = parameter.numel() * _FP32
        if n_bytes >= least_bytes:
            place = files(n_bytes).view(torch.float32).view(parameter.shape)
            parameter.register_post_accumulate_grad_hook(partial(_moved, place=place, attribute=attribute))


@torch.no_grad()
def _moved(parameter: Tensor, *, place: Tensor, attribute: str) -> None:
    """Put a new gradient into its file; one that is there already was added to in place."""
    gradient = getattr(parameter, attribute)
    if gradient is not None and gradient.data_ptr() != place.data_ptr():
        place.copy_(gradient)
        setattr(parameter, attribute, place.detach())  # an alias: DeepSpeed points what it finds there to a bucket


def _within(owner: Any, name: str, block: Callable[..., AbstractContextManager[Any]]) -> None:
    """Run an object's method inside a block, which may depend on the arguments."""
    method = getattr(owner, name)

    def run(*arguments: Any, **named: Any) -> Any:
        with block(*arguments):
            return method(*arguments, **named)

    setattr(owner, name, run)
