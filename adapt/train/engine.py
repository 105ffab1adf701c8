"""DeepSpeed as the engine, on CPU (gloo) and CUDA (NCCL) alike: the only file that imports it.

Accumulation, scaling and checkpoints are ours: a micro-batch's loss is already divided by global counts, so DeepSpeed's division
by accumulation is switched off and its average over ranks is undone by the objective's factor world_size. Weights and moments are
gathered and set by parameter name, so that a training state does not know how ZeRO cut them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError, TrainingError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo
from adapt.model.buffers import named_state, saved_buffers
from adapt.train.engine_config import EngineConfig, deepspeed_config
from adapt.train.optimizer import OptimizerConfig, make_optimizer

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
try:
    # DeepSpeed announces its choices on standard output while it is imported; ranks must stay quiet.
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        from deepspeed.utils import logger as deepspeed_logger
except Exception as import_error:  # a missing CUDA_HOME surfaces as an error class that only DeepSpeed itself can name
    if not isinstance(import_error, OSError) and type(import_error).__name__ != "MissingCUDAException":
        raise
    raise ConfigError(
        f"deepspeed cannot be imported ({import_error}); set CUDA_HOME, or DS_ACCELERATOR=cpu to train on the CPU"
    ) from import_error
deepspeed_logger.setLevel(logging.ERROR)
# On CPU, DeepSpeed would compile a shared-memory reduction at start; gloo needs no compiler and leaves nothing behind when killed.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A model under DeepSpeed: accumulate micro-batches, step, and give or take the whole training state by name."""

    def __init__(self, model: nn.Module, config: EngineConfig, optimizer: OptimizerConfig, rank: RankInfo) -> None:
        self.rank = rank
        self.device = torch.device("cuda", rank.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self._model = model
        is_rounded = config.precision is Precision.BF16
        exact = {name: tensor.detach().clone() for name, tensor in named_state(model)} if is_rounded else {}
        # What is not trained has no master: where forward reads a rounded form of it, the exact one is kept here.
        self._frozen = {name: exact[name].cpu() for name, p in model.named_parameters() if not p.requires_grad and is_rounded}
        if not torch.distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            with contextlib.redirect_stdout(sys.stderr):
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        with contextlib.redirect_stdout(sys.stderr):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=model,
                optimizer=make_optimizer(model, optimizer),
                config=deepspeed_config(config, optimizer),
                dist_init_required=False,
            )
        self._create_moments(0)
        if is_rounded:
            # DeepSpeed made its fp32 masters from rounded weights; give it the exact ones.
            self.set_weights(exact)

    @property
    def module(self) -> nn.Module:
        return self._model

    def accumulate(self, loss: Callable[[], Tensor], is_last: bool) -> None:
        """Run one micro-batch forward and backward; gradients add up until the step."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss(), scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip, update, and return the global gradient norm before clipping.

        Raises:
            TrainingError: the norm is not finite; what was saved before is intact.
        """
        self._take_step(lr)
        return self._checked_norm(float(self._engine.get_global_grad_norm()))

    def _take_step(self, lr: float) -> None:
        for group in self._zero.param_groups:
            group["lr"] = lr
        self._engine.step()

    def _checked_norm(self, norm: float) -> float:
        if not torch.isfinite(torch.tensor(norm)) or norm < 0:
            raise TrainingError("the gradient norm is not finite; lower the learning rate or use engine.precision=fp32")
        return norm

    def all_sum(self, values: Tensor) -> Tensor:
        """Sum an fp64 vector over the ranks."""
        if self.rank.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
            values = values.cpu()
        return values

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full fp32 weight), then routers' state; a collective: every rank must walk through it."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                yield name, deepspeed.utils.safe_get_full_fp32_param(parameter)
            else:
                yield name, self._frozen.get(name, parameter)
        yield from saved_buffers(self._model)  # whole and equal on every rank

    def named_moments(self, which: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full fp32 moment) of what is trained, `which` of MOMENTS; a collective."""
        for name, parameter in self._trained():
            yield name, deepspeed.utils.safe_get_full_optimizer_state(parameter, which)

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set master weights and routers' state by name, then what forward reads."""
        for name, parameter in self._trained():
            deepspeed.utils.safe_set_full_fp32_param(parameter, weights[name].to(self.device, torch.float32))
        self._zero.update_lp_params()
        for name, buffer in saved_buffers(self._model):
            buffer.copy_(weights[name])

    def set_moments(self, moments: Mapping[str, Mapping[str, Tensor]], steps_done: int) -> None:
        """Set the optimizer's moments by name, as after `steps_done` updates."""
        self._create_moments(steps_done)
        for name, parameter in self._trained():
            for which in MOMENTS:
                value = moments[which][name].to(self.device, torch.float32)
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, which)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)

    def _create_moments(self, steps_done: int) -> None:
        """Allocate the moments of every group at once and link them to their parameters.

        Left to itself, DeepSpeed links them after the first group's first update, when the other groups have none yet.
        """
        for flat in self._zero.single_partition_of_fp32_groups:
            state = {which: torch.zeros_like(flat) for which in MOMENTS}
            self._zero.optimizer.state[flat] = {"step": torch.tensor(float(steps_done)), **state}
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def barrier(self) -> None:
        if self.rank.world_size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group; the last call of a rank that ends well."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
