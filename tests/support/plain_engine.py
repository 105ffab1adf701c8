"""An engine in one process without DeepSpeed: AdamW and clipping, with the interface that the loop and training states use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from adapt.core.runtime import RankInfo
from adapt.model.buffers import named_state
from adapt.model.expert_parallel import Rows
from adapt.model.gpt import GPT
from adapt.train.optimizer import MOMENTS, StepOutcome, parameter_groups
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.state_pieces import WEIGHTS, Piece, whole_pieces


class PlainEngine:
    """What `Engine` is to a single rank on the CPU."""

    def __init__(self, model: GPT, config: OptimizerConfig) -> None:
        self.rank = RankInfo(rank=0, world_size=1, local_rank=0)
        self.device = self.state_device = torch.device("cpu")
        self.module = model
        self._clip = config.clip
        self._adamw = torch.optim.AdamW(
            parameter_groups(model, config), lr=config.largest_lr, betas=(config.beta1, config.beta2), eps=config.eps
        )

    def accumulate(self, loss: Callable[[], Tensor], is_last: bool) -> None:
        loss().backward()

    loss_scale = None

    def step(self, lr: float) -> StepOutcome:
        for group in self._adamw.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self._adamw.step()
        self._adamw.zero_grad()
        return StepOutcome(grad_norm=float(norm))

    def all_sum(self, values: Tensor) -> Tensor:
        return values

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return named_state(self.module)

    def named_moments(self, which: str) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._adamw.state[p][which]) for name, p in self.module.named_parameters() if p.requires_grad)

    def own_pieces(self) -> Iterator[Piece]:
        yield from whole_pieces(WEIGHTS, self.named_weights())
        for which in MOMENTS:
            yield from whole_pieces(which, self.named_moments(which))

    def state_shapes(self) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in self.named_weights()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Rows]) -> None:
        for name, tensor in named_state(self.module):
            tensor.copy_(weights[name][...])

    def set_moments(self, moments: Mapping[str, Mapping[str, Rows]], steps_done: int) -> None:
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            kept = {which: by_name[name][...].clone() for which, by_name in moments.items()}
            self._adamw.state[parameter] = {"step": torch.tensor(float(steps_done)), **kept}

    @property
    def updates_done(self) -> int:
        return int(next(iter(self._adamw.state.values()))["step"])

    def barrier(self) -> None:
        return None
