"""An untrained model's weights as a stream, of any size: what `materialize` makes, never held.

Two parts at a time are drawn ahead by threads of their own while the one before is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.model.buffers import saved_buffers
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT, initial_part

_AHEAD = 2


def random_weights(config: GPTConfig, seed: int) -> Iterator[tuple[str, AnyTensor]]:
    """Yield (name, tensor) of an untrained model in fp32; stacked experts come expert by expert.

    Raises:
        ConfigError: the sizes make no model.
    """
    model = GPT(config)
    with ThreadPoolExecutor(_AHEAD) as pool:
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if ".experts." in name:
                parts = partial(_parts, pool, config, name, shape, seed)
                yield name, PartedTensor(shape=shape, dtype=torch.float32, parts=parts)
            else:
                yield name, initial_part(config, name, 0, shape, seed)
    for name, buffer in saved_buffers(model):
        yield name, torch.zeros(buffer.shape, dtype=buffer.dtype)


def _parts(pool: ThreadPoolExecutor, config: GPTConfig, name: str, shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    under_way: deque[Future[Tensor]] = deque()
    for index in range(shape[0]):
        under_way.append(pool.submit(initial_part, config, name, index, shape[1:], seed))
        if len(under_way) > _AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
