"""The engine at ZeRO stage 0: every rank keeps the whole optimizer, and only gradients are averaged.

Nothing is cut here, so that an optimizer may look at whole tensors (LAMB), and other stages can be compared with this one. Weights
are fp32: there are no masters beside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapt.core.allocator import give_back, given_back
from adapt.core.limits import GIVEN_BACK_ONCE
from adapt.core.runtime import RankInfo
from adapt.model.buffers import named_state, saved_buffers
from adapt.model.expert_parallel import Rows
from adapt.train.engine import Engine
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer import MOMENTS, StepOutcome, create_moments
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import Paging
from adapt.train.paged_gradients import page_unpartitioned
from adapt.train.state_pieces import WEIGHTS, Piece, whole_pieces


def open_engine(
    model: nn.Module,
    config: EngineConfig,
    optimizer: OptimizerConfig,
    rank: RankInfo,
    paging: Paging | None = None,
    *,
    on_host: bool = False,
) -> Engine:
    """Put a model under the engine that the settings ask for.

    With `paging` the optimizer's state lies in a file, with `on_host` in the host's memory (ZeRO stages 1 and 2).
    """
    kind = Engine if config.zero_stage else WholeEngine
    if paging is not None:
        give_back(GIVEN_BACK_ONCE)
    with given_back(GIVEN_BACK_ONCE):
        return kind(model, config, optimizer, rank, paging, on_host=on_host)


class WholeEngine(Engine):
    """A model under DeepSpeed without partitions."""

    def step(self, lr: float) -> StepOutcome:
        gradients = [parameter.grad for _, parameter in self._trained() if parameter.grad is not None]
        norm = self._checked_norm(float(torch.nn.utils.get_total_norm(gradients)))
        self._take_step(lr)
        return StepOutcome(grad_norm=norm)

    def _own_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        return ((parameter, parameter.grad) for _, parameter in self._trained() if parameter.grad is not None)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return named_state(self.module)

    def named_moments(self, which: str) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._zero.state[parameter][which].float()) for name, parameter in self._trained())

    def own_pieces(self) -> Iterator[Piece]:
        """Yield every tensor that falls to this rank when they are given out in turn: all ranks hold all of them."""

        def mine(which: str, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Piece]:
            return whole_pieces(which, itertools.islice(tensors, self.rank.rank, None, self.rank.world_size))

        yield from mine(WEIGHTS, self.named_weights())
        for which in MOMENTS:
            yield from mine(which, self.named_moments(which))

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Rows]) -> None:
        for name, tensor in (*self._trained(), *saved_buffers(self.module)):
            tensor.copy_(weights[name][...])

    def set_moments(self, moments: Mapping[str, Mapping[str, Rows]], steps_done: int) -> None:
        self._create_moments(steps_done)
        for name, parameter in self._trained():
            for which in MOMENTS:
                self._zero.state[parameter][which].copy_(moments[which][name][...])

    def _optimizer_states(self) -> Iterator[Mapping[str, Any]]:
        return (self._zero.state[parameter] for _, parameter in self._trained())

    def _watch_overflow(self) -> None:
        """Do nothing: fp32 gradients are not scaled."""

    def _create_moments(self, steps_done: int) -> None:
        create_moments(self._zero, self._zero.param_groups, steps_done)

    def _page(self, paging: Paging) -> None:
        page_unpartitioned(self._engine, [parameter for _, parameter in self._trained()], paging)
        self._zero.lay_out(pages_weights=False)

    def _optimizer(self) -> Any:
        return self._zero
