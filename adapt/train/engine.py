"""DeepSpeed as the engine, on CPU (gloo) and CUDA (NCCL) alike: the only file that imports it.

Accumulation, scaling and checkpoints are ours: a micro-batch's loss is already divided by global counts, so DeepSpeed's division
by accumulation is switched off and its average over ranks is undone by the objective's factor world_size. Weights and moments are
gathered and set by parameter name, with all experts in their order, so that a training state does not know how ZeRO and expert
parallelism cut them.

In bf16 and fp16 DeepSpeed rounds the model and keeps fp32 masters beside it; routers are not rounded, forward reads their masters.
Gradients are summed over ranks in fp32, unless `engine.gradient_communication` says otherwise. In fp16 DeepSpeed also scales the
loss and decides which steps to skip; its scaler's numbers are given and taken like the rest of the state.

Where ranks share experts, a MoE layer becomes one of DeepSpeed's when the engine is made: that is how DeepSpeed learns to reduce
the experts' gradients only over those ranks that hold the same experts, and to add up their norms over all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapt.core.device import take_device
from adapt.core.errors import ConfigError, TrainingError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo
from adapt.model.buffers import saved_buffers, state_parameters
from adapt.model.exchange import GroupPeers
from adapt.model.expert_parallel import Rows, is_stack, own_experts, own_part
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.model.moe import MoELayer
from adapt.train.brought_gemm import bring_gemm
from adapt.train.divergence import where_gradients_break
from adapt.train.engine_config import EngineConfig, GradientCommunication, deepspeed_config
from adapt.train.host_optimizer import hold_on_host
from adapt.train.loss_scale import LossScale
from adapt.train.model_preparation import check_is_scaled, exact_state, groups_by_format, kept_exact, router_parameters
from adapt.train.optimizer import MOMENTS, StepOutcome, create_moments, make_optimizer, parameter_groups, set_learning_rate
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import Paging, weights_in_place
from adapt.train.paged_gradients import page_partitions, share_masters
from adapt.train.state_pieces import Piece, partition_pieces, whole_shapes

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
try:
    # DeepSpeed announces its choices on standard output while it is imported; ranks must stay quiet.
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        from deepspeed.accelerator import get_accelerator
        from deepspeed.moe.layer import MoE
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
        from deepspeed.utils import groups as deepspeed_groups
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

_NORM_AGREEMENT = 1e-5


class Engine:
    """A model under DeepSpeed: accumulate micro-batches, step, and give or take the whole training state by name."""

    def __init__(
        self,
        model: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        rank: RankInfo,
        paging: Paging | None = None,
        *,
        on_host: bool = False,
    ) -> None:
        self.rank = rank
        self.is_paged = paging is not None
        self.device = take_device(rank)
        self.state_device = torch.device("cpu") if on_host else self.device  # of masters and moments
        if paging is not None and self.device.type != "cpu":
            raise ConfigError("offload.optimizer: paged is for ranks that train on CPUs; on GPUs set it to cpu or none")
        self._model = model
        self._share = config.expert_share(rank.rank)
        if self._share.of > 1:
            own_experts(model, self._share)
        mapped = model.mapped if isinstance(model, HFModel) else None
        if mapped is not None:
            mapped.settle(config.precision.dtype)
        if isinstance(model, GPT | HFModel):
            model.set_recompute(config.activation_checkpointing)
        is_rounded = config.precision.is_rounded
        self._is_scaled = config.precision is Precision.FP16
        if self._is_scaled and self.device.type == "cpu":
            _allow_fp16_on_the_cpu()
        if config.precision is Precision.BF16:
            bring_gemm(model, self.device)
        with weights_in_place(paging):
            exact = exact_state(model) if is_rounded else {}
        # What is not trained has no master: where forward reads a rounded form of it, the exact one is kept here.
        self._frozen = {name: exact[name].cpu() for name, p in state_parameters(model) if name in exact and not p.requires_grad}
        if not torch.distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            with contextlib.redirect_stdout(sys.stderr):
                deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        self._peers = _share_experts(model, self._share.of) if self._share.of > 1 else None
        routers = router_parameters(model) if is_rounded else {}
        groups = groups_by_format(_split_groups(parameter_groups(model, optimizer)), routers.values())
        if self._is_scaled:
            check_is_scaled(groups, routers.values())
        kept = kept_exact(model, {name: exact[name] for name in routers}, self.device)
        apart = contextlib.nullcontext() if mapped is None else mapped.apart()
        with contextlib.redirect_stdout(sys.stderr), kept, apart, weights_in_place(paging):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=model,
                optimizer=make_optimizer(model, optimizer, groups, paging),
                config=deepspeed_config(config, optimizer),
                dist_init_required=False,
            )
        if is_rounded and config.gradient_communication is GradientCommunication.FP32:
            # What is summed lies in fp32 too: DeepSpeed would round it to the model's format, and divide it by the ranks in that.
            self._zero._gradient_reduction_buffer_dtype = lambda: torch.float32
        self._watch_overflow()
        if paging is not None:
            self._page(paging)
        if on_host:
            hold_on_host(self._zero)
            self._zero._link_all_hp_params()
        self._create_moments(0)
        if is_rounded:
            # DeepSpeed made its fp32 masters from rounded weights; give it the exact ones.
            self._set_own_weights(exact.__getitem__)

    @property
    def module(self) -> nn.Module:
        return self._model

    def accumulate(self, loss: Callable[[], Tensor], is_last: bool) -> None:
        """Run one micro-batch forward and backward; gradients add up until the step."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss(), scale_wrt_gas=False)

    def step(self, lr: float) -> StepOutcome:
        """Clip and update; in fp16, skip a step whose scaled gradient overflows.

        Raises:
            TrainingError: the norm is not finite, in fp16 at the least scale too, or not the same on all ranks; what was saved
                before is intact.
        """
        scale = self._zero.loss_scale if self._is_scaled else None
        self._take_step(lr)
        if self._is_scaled and self._zero.overflow:
            return StepOutcome(grad_norm=None, loss_scale=scale)
        return StepOutcome(grad_norm=self._checked_norm(float(self._engine.get_global_grad_norm())), loss_scale=scale)

    def _on_overflow_known(self, is_overflow: bool) -> None:
        """Move the loss scale. DeepSpeed calls this inside a step, on all ranks alike, while the gradients are still there."""
        scaler = self._zero.loss_scaler
        if is_overflow and not self._is_scaled:
            raise self._not_finite()
        if is_overflow and scaler.cur_scale <= scaler.min_scale and scaler.cur_hysteresis <= 1:
            raise self._not_finite(f" at the least loss scale, {scaler.cur_scale:g}")
        scaler.update_scale(is_overflow)

    def _not_finite(self, at: str = "") -> TrainingError:
        """Return the error of a gradient that is not finite, with the names of those that are not; a collective."""
        where = where_gradients_break(self._model, self._own_gradients(), self.all_sum)
        remedy = "bf16 or fp32" if self._is_scaled else "fp32"
        return TrainingError(
            f"the gradient norm is not finite{at}, {where}; the last saved state is kept; lower the learning rate or use "
            f"engine.precision={remedy}"
        )

    def _own_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield what this rank holds of the step's gradients, reduced over the ranks, in pieces."""
        for index, pieces in self._zero.averaged_gradients.items():
            own = (piece for piece in pieces or () if not getattr(piece, "_zero_padding", False))
            yield from zip(self._zero.params_in_partition[index], own, strict=False)  # a rank may hold only padding

    def _take_step(self, lr: float) -> None:
        set_learning_rate(self._zero.param_groups, lr)
        self._engine.step()

    def _checked_norm(self, norm: float) -> float:
        norms = torch.tensor([norm, -norm] if math.isfinite(norm) and norm >= 0 else [math.inf, math.inf], dtype=torch.float64)
        if self.rank.world_size > 1:
            norms = norms.to(self.device)
            torch.distributed.all_reduce(norms, torch.distributed.ReduceOp.MAX)
        largest, smallest = norms[0].item(), -norms[1].item()
        if not math.isfinite(largest):
            raise self._not_finite()
        if largest - smallest > _NORM_AGREEMENT * largest:
            raise TrainingError(f"the gradient norm is {smallest} on one rank and {largest} on another: weights would drift apart")
        return norm

    def all_sum(self, values: Tensor) -> Tensor:
        """Sum an fp64 vector over the ranks."""
        if self.rank.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
            values = values.cpu()
        return values

    def norm_over_ranks(self, gradients: Mapping[str, Tensor]) -> float:
        """Return the norm of the sum over ranks of what each has by parameter name, every expert counted once; a collective."""
        whole = owned = 0.0
        for name, gradient in gradients.items():
            exact = gradient.flatten().double()
            if self._peers is None or not is_stack(name):
                whole += float(self.all_sum(exact).square().sum())
            else:
                owned += float(self._peers.summed_over_twins(exact).square().sum())
        if self._peers is not None:
            whole += float(self.all_sum(torch.tensor([owned], dtype=torch.float64))) / self._peers.n_twins
        return whole**0.5

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full fp32 weight), then routers' state; a collective: every rank must walk through it."""
        for name, parameter in state_parameters(self._model):
            if parameter.requires_grad:
                own = deepspeed.utils.safe_get_full_fp32_param(parameter)
            else:
                own = self._frozen.get(name, parameter)
            yield name, self._with_all_experts(name, own)
        yield from saved_buffers(self._model)  # whole and equal on every rank

    def named_moments(self, which: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full fp32 moment) of what is trained, `which` of MOMENTS; a collective."""
        for name, parameter in self._trained():
            yield name, self._with_all_experts(name, deepspeed.utils.safe_get_full_optimizer_state(parameter, which))

    def own_pieces(self) -> Iterator[Piece]:
        """Yield what this rank adds to a training state: its partition of masters and moments, and a part of what is frozen."""
        return partition_pieces(self._model, self._frozen, self._share, self.rank)

    def state_shapes(self) -> dict[str, list[int]]:
        """Return the shapes of a training state's tensors by name, those of all ranks' experts together."""
        return whole_shapes(self._model, self._share)

    def set_weights(self, weights: Mapping[str, Rows]) -> None:
        """Set master weights and routers' state by name, then what forward reads; tensors are full."""
        self._set_own_weights(lambda name: own_part(name, weights[name], self._share))

    def _set_own_weights(self, weight: Callable[[str], Tensor]) -> None:
        for name, parameter in self._trained():
            deepspeed.utils.safe_set_full_fp32_param(parameter, weight(name).to(self.device, torch.float32))
        self._zero.update_lp_params()
        for name, buffer in saved_buffers(self._model):
            buffer.copy_(weight(name))

    def set_moments(self, moments: Mapping[str, Mapping[str, Rows]], steps_done: int) -> None:
        """Set the optimizer's moments by name, as after `steps_done` updates."""
        self._create_moments(steps_done)
        for name, parameter in self._trained():
            for which in MOMENTS:
                value = own_part(name, moments[which][name], self._share).to(self.device, torch.float32)
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, which)

    @property
    def updates_done(self) -> int:
        """How many updates the moments have seen: skipped steps are none, and they may have begun in another training."""
        return int(next(iter(self._optimizer_states()))["step"])

    @property
    def loss_scale(self) -> LossScale | None:
        """The scale of the next step's loss and what it moves by; None where losses are not scaled."""
        if not self._is_scaled:
            return None
        scaler = self._zero.loss_scaler
        return LossScale(
            scale=float(scaler.cur_scale),
            steps=scaler.cur_iter,
            last_overflow=scaler.last_overflow_iter,
            until_halved=scaler.cur_hysteresis,
        )

    def set_loss_scale(self, state: LossScale) -> None:
        """Go on with a scale as `loss_scale` returned it."""
        assert self._is_scaled, "a loss is scaled only in fp16"
        scaler = self._zero.loss_scaler
        scaler.cur_scale, scaler.cur_hysteresis = state.scale, state.until_halved
        scaler.cur_iter, scaler.last_overflow_iter = state.steps, state.last_overflow

    def _optimizer_states(self) -> Iterator[Mapping[str, Any]]:
        return (self._zero.optimizer.state[flat] for flat in self._zero.single_partition_of_fp32_groups)

    def _watch_overflow(self) -> None:
        self._zero._update_scale = self._on_overflow_known

    def _with_all_experts(self, name: str, own: Tensor) -> Tensor:
        return own if self._peers is None or not is_stack(name) else self._peers.joined(own.to(self.device))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)

    def _create_moments(self, steps_done: int) -> None:
        """Allocate the moments of every group at once and link them to their parameters.

        Left to itself, DeepSpeed links them after the first group's first update, when the other groups have none yet.
        """
        create_moments(self._optimizer(), self._zero.param_groups, steps_done)
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def _page(self, paging: Paging) -> None:
        """Move masters, moments and gradients to files, and let DeepSpeed's views of the masters follow."""
        page_partitions(self._zero, paging)
        share_masters(self._zero)
        self._optimizer().lay_out(pages_weights=self._zero.dtype is not torch.float32)
        self._zero._link_all_hp_params()

    def _optimizer(self) -> Any:
        return self._zero.optimizer

    def barrier(self) -> None:
        if self.rank.world_size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group and the scratch file; the last call of a rank that ends well."""
        if self.is_paged:
            self._optimizer().close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _SharedLayer(MoELayer, MoE):
    """A MoE layer that DeepSpeed takes for one of its own, by its class and these five names; it computes as it did before."""

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Do nothing: the groups were made before."""

    @property
    def num_experts(self) -> int:
        return self.experts.n_experts

    @property
    def ep_size(self) -> int:
        return self.experts.share.of

    @property
    def num_local_experts(self) -> int:
        return self.num_experts // self.ep_size

    @property
    def expert_group_name(self) -> str:
        return _group_name(self.ep_size)


def _allow_fp16_on_the_cpu() -> None:
    """Let DeepSpeed take fp16 on any CPU: it asks oneDNN, which says whether fp16 is fast there; torch computes it anyway."""
    get_accelerator().is_fp16_supported = lambda: True


def _share_experts(model: nn.Module, n_ranks: int) -> GroupPeers:
    """Make groups of neighbouring ranks that share experts, and tell layers and parameters which one is theirs."""
    name = _group_name(n_ranks)
    deepspeed_groups._create_expert_and_data_parallel(n_ranks)
    twins = deepspeed_groups._get_expert_data_parallel_group(name)
    peers = GroupPeers(deepspeed_groups._get_expert_parallel_group(name), twins)
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.__class__ = _SharedLayer
            module.experts.peers = peers
            for parameter in module.experts.parameters():
                parameter.allreduce, parameter.group_name = False, name  # type: ignore[attr-defined]
    return peers


def _split_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give shared experts groups of their own, as DeepSpeed wants them."""
    named = [{**group, "name": f"group {index}"} for index, group in enumerate(groups)]
    return split_params_into_different_moe_groups_for_optimizer(named)


def _group_name(n_ranks: int) -> str:
    return f"ep_size_{n_ranks}"  # DeepSpeed reads the number from the name
