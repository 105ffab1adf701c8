"""Activation checkpointing: what a block computes in forward is computed again in backward instead of being kept.

What was decided is kept and never decided again: a near-tie that fell to another expert the second time would give gradients to an
expert that did not compute the output. Decisions are the outputs of operations that pick (arg max, top k, sorting, comparing,
drawing), a few numbers a token, whatever router uses them. Statistics come from the first time only.

Source: Chen et al. 2016 (Training Deep Nets with Sublinear Memory Cost), arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Result = TypeVar("Result")

_PICKING = (
    "argmax argmin max min topk kthvalue sort searchsorted bucketize multinomial bernoulli bernoulli_ nonzero lt le gt ge eq ne"
)
_DECISIONS = frozenset(getattr(torch.ops.aten, name) for name in _PICKING.split())


def recomputed(run: Callable[..., Result], *args: Any) -> Result:
    """Call `run`, keeping only its arguments and decisions for the backward pass. Models draw no random numbers of torch's."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    result: Result = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return result


def recompute_module(module: nn.Module) -> None:
    """Have a layer of transformers', or a part of one, keep only what it is given, wherever gradients are wanted.

    Keys and values for steps to come are not kept then: a layer that is computed again would add them twice.
    """
    run = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        if (cache := kwargs.pop("past_key_values", None)) is not None:
            assert not cache.get_seq_length(), "a past is read without gradients"
        return recomputed(partial(run, **kwargs), *args)

    module.forward = forward


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_decision = getattr(operation, "overloadpacket", None) in _DECISIONS
    return CheckpointPolicy.MUST_SAVE if is_decision else CheckpointPolicy.PREFER_RECOMPUTE
