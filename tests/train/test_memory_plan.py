"""The memory plan against what a training step's forward pass keeps, against hand-made figures, and its refusals."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

import adapt.model.experts
from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.core.errors import ConfigError
from adapt.core.limits import MemoryLimit
from adapt.core.precision import Precision
from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, SpannedText, read_with_targets
from adapt.core.typed import from_plain
from adapt.model.batches import Batch, collate
from adapt.model.config import Recompute
from adapt.model.counting import count_parameters
from adapt.model.expert_parallel import check_share
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.grouped_gemm import torch_gemm
from adapt.model.routers.top2 import Top2Config
from adapt.objective import Contribution, contribution, part_counts
from adapt.objective_config import ObjectiveConfig
from adapt.train import memory_checks, memory_plan
from adapt.train.engine_config import EngineConfig, GradientCommunication
from adapt.train.memory_checks import check_memory
from adapt.train.memory_plan import OwnModel, plan_memory, plan_own, plan_passing, plan_scratch
from tests.support.tiny_models import ROOT, tiny_config

SIZES: dict[str, Any] = {"hidden_size": 64, "context_length": 128, "vocab_size": 500}
MODELS = {
    "dense": tiny_config([0], **SIZES),
    "top1": tiny_config([4], is_residual=False, **SIZES),
    "residual": tiny_config([4], **SIZES),
    "top2 with a network behind": tiny_config([4, 8], router=Top2Config(), expert_residual_layers=2, **SIZES),
}
BIG = GPTConfig(**yaml.safe_load((ROOT / "conf" / "model" / "16b_pyramid.yaml").read_text(encoding="utf-8")))
NODE = EngineConfig(world_size=8, precision=Precision.BF16)
IN_FP16 = replace(NODE, precision=Precision.FP16)
SHIPPED = replace(
    from_plain(EngineConfig, yaml.safe_load((ROOT / "conf" / "engine" / "node8.yaml").read_text(encoding="utf-8")), "node8.yaml"),
    precision=Precision.BF16,  # what `auto` is on the GPUs that it is for
)


def full_rows(config: GPTConfig, rows: int) -> Batch:
    length = config.context_length
    ids = [generator_for("plan", row).integers(5, config.vocab_size, length) for row in range(rows)]
    return collate([[read_with_targets(SpannedText(ids_T=i, kinds_T=i * 0), LabelForm.CLM, 4)] for i in ids], step=0)


def kept_bytes(config: GPTConfig, engine: EngineConfig) -> int:
    """Return what a forward pass has allocated and not freed while its graph is alive."""
    model, batch = materialize(GPT(config), seed=1).train(), full_rows(config, engine.micro_batch)
    model.set_recompute(engine.activation_checkpointing)

    def forward() -> Contribution:
        even = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
        return contribution(model, batch, part_counts(model, batch), even, ObjectiveConfig(), world_size=1)

    forward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        part = forward()
    assert part.loss.requires_grad
    return int(sum(event.self_cpu_memory_usage for event in profiled.key_averages()))


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("name", MODELS)
def test_planned_activations_are_what_forward_keeps(name: str, recompute: Recompute) -> None:
    engine = EngineConfig(micro_batch=4, precision=Precision.FP32, activation_checkpointing=recompute)
    k = GPT(MODELS[name]).router_traits.experts_per_token
    planned = plan_passing(MODELS[name], engine, k, on_cpu=False).activations
    assert planned == pytest.approx(kept_bytes(MODELS[name], engine), rel=0.1)


@pytest.mark.parametrize("name", ["top1", "top2 with a network behind"])
def test_one_kernel_for_all_experts_keeps_what_is_planned_beside_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, engine = MODELS[name], EngineConfig(micro_batch=4, precision=Precision.FP32)
    one_by_one = kept_bytes(config, engine)
    monkeypatch.setattr(adapt.model.experts, "gemm_for", lambda x, up, brought: torch_gemm)
    model = GPT(config)
    n_pairs = 4 * config.context_length * model.router_traits.experts_per_token * len(model.expert_counts)
    in_bf16 = EngineConfig(micro_batch=4, precision=Precision.BF16)  # which is planned as on a GPU
    more = memory_plan._pair_elements(config, in_bf16, False) - memory_plan._pair_elements(config, engine, False)
    assert kept_bytes(config, engine) - one_by_one == pytest.approx(4 * n_pairs * more, rel=0.1)


def test_kept_activations_shrink_from_none_to_selective_to_full() -> None:
    none, selective, full = (kept_bytes(MODELS["top1"], EngineConfig(micro_batch=4, activation_checkpointing=r)) for r in Recompute)
    assert selective < 0.6 * none
    assert full < 0.4 * selective


@pytest.mark.parametrize(("expert_parallel", "gigabytes"), [(1, 61.3), (8, 35.0)])
def test_weights_and_states_of_the_16b_model_on_eight_ranks(expert_parallel: int, gigabytes: float) -> None:
    counts = count_parameters(BIG)
    plan = plan_memory(counts, replace(NODE, expert_parallel=expert_parallel))
    in_16_bit = plan["gradients"] / 2  # the figures are for 16-bit gradients; ours add up in fp32
    assert (plan["weights"] + in_16_bit + plan["master"] + plan["moments"]) / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_the_largest_model_fits_the_shipped_node_of_80_gb_with_room_to_spare() -> None:
    model = GPT(BIG)
    check_share(model.expert_counts, SHIPPED.expert_parallel)
    assert plan_own(OwnModel.of(BIG), SHIPPED).total < 70e9  # the CUDA context, NCCL and uneven routing come on top
    check_memory(BIG, replace(SHIPPED, memory_gb=70), on_cpu=False)


def test_routers_are_planned_in_fp32_whatever_the_others_are_in() -> None:
    counts = count_parameters(BIG)
    routers, others = counts.by_kind["router"], counts.total - counts.by_kind["router"]
    assert plan_memory(counts, NODE)["weights"] == 4 * routers + 2 * others


def test_buckets_are_planned_in_the_format_that_gradients_are_summed_in() -> None:
    counts = count_parameters(BIG)
    by_how = {how: plan_memory(counts, replace(NODE, gradient_communication=how))["buckets"] for how in GradientCommunication}
    n_elements = NODE.bucket_elements
    assert by_how == {GradientCommunication.FP32: n_elements * (4 + 4), GradientCommunication.MODEL: n_elements * (2 + 2)}


@pytest.mark.parametrize(("engine", "at_update"), [(SHIPPED, 4 + 2), (replace(SHIPPED, precision=Precision.FP32), 4)])
def test_an_optimizer_on_the_host_leaves_a_gpu_there_and_a_cpu_as_it_is(engine: EngineConfig, at_update: int) -> None:
    model, host = OwnModel.of(BIG), OffloadConfig(optimizer=OptimizerIn.CPU)
    own = model.counts.total / 8  # all ranks share the optimizer
    beside, there = (plan_own(model, engine, offload, on_cpu=False) for offload in (None, host))
    assert beside.host == 0 and there.host == pytest.approx((12 + at_update) * own)
    assert beside.total - there.total == pytest.approx(12 * own)
    assert set(beside.memory) - set(there.memory) == {"master", "moments"}
    assert plan_own(model, engine, host, on_cpu=True) == plan_own(model, engine, on_cpu=True)


def test_zero_1_keeps_whole_gradients_of_what_a_rank_holds() -> None:
    counts = count_parameters(BIG)
    plan = plan_memory(counts, replace(IN_FP16, expert_parallel=4, zero_stage=1))
    experts = counts.by_kind["experts"]
    assert plan["gradients"] == 4 * (counts.total - experts + experts / 4)


@pytest.mark.parametrize(
    ("engine", "memory_gb", "nearest"),
    [
        (replace(NODE, micro_batch=8), 90, "engine.micro_batch=4"),
        (replace(NODE, micro_batch=1), 45, "engine.expert_parallel=4"),
        (replace(IN_FP16, micro_batch=1, zero_stage=1), 75, "engine.zero_stage=2"),
        (replace(NODE, micro_batch=1), 26, "engine.expert_parallel=4 offload.optimizer=cpu"),
        (replace(NODE, micro_batch=1), 14, "engine.world_size=16 engine.expert_parallel=8 offload.optimizer=cpu"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_setting_that_does(
    engine: EngineConfig, memory_gb: float, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"the nearest setting that fits is {nearest}") as refused:
        check_memory(BIG, replace(engine, memory_gb=memory_gb), on_cpu=False)
    settings = dict(pair.split("=") for pair in str(refused.value).split("fits is ")[1].replace("engine.", "").split())
    place = OptimizerIn(settings.pop("offload.optimizer", "none"))
    changes: dict[str, Any] = {k: int(v) if v.isdigit() else Recompute(v) for k, v in settings.items()}
    other = replace(engine, **changes)
    check_memory(BIG, replace(other, memory_gb=memory_gb), OffloadConfig(optimizer=place), on_cpu=False)


def test_what_fits_nowhere_says_so_and_what_fits_is_not_refused() -> None:
    with pytest.raises(ConfigError, match="no setting fits on up to 1024 ranks"):
        check_memory(BIG, replace(NODE, memory_gb=1.0), on_cpu=False)
    check_memory(BIG, replace(NODE, memory_gb=1000.0), on_cpu=False)
    check_memory(BIG, NODE, on_cpu=False)


def test_limits_of_the_machine_refuse_what_cannot_fit_for_each_rank_or_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, config = EngineConfig(world_size=2, precision=Precision.FP32), MODELS["dense"]
    needed = round(plan_own(OwnModel.of(config), engine, on_cpu=True).total)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for is_shared, n_bytes in ((False, needed + 1), (True, 2 * needed + 2)):
        for room, is_refused in ((n_bytes, False), (round(n_bytes * 0.9), True)):
            limit = MemoryLimit(n_bytes=room, what="the tests", is_shared=is_shared)
            monkeypatch.setattr(memory_checks, "memory_limits", lambda limit=limit: [limit])
            words = r"engine: a rank needs .* the tests allows .* for each of 2 ranks; "
            with pytest.raises(ConfigError, match=words) if is_refused else contextlib.nullcontext():
                check_memory(config, engine)


@pytest.mark.parametrize(
    ("stage", "moments", "in_files"), [(0, MomentFormat.FP32, 16), (1, MomentFormat.FP32, 16), (2, MomentFormat.BF16, 8)]
)
def test_a_paged_optimizer_takes_less_than_two_bytes_a_parameter_of_memory_and_the_rest_of_files(
    stage: int, moments: MomentFormat, in_files: int
) -> None:
    counts = count_parameters(BIG)
    engine = EngineConfig(zero_stage=stage, precision=Precision.FP32)
    paged = OffloadConfig(optimizer=OptimizerIn.PAGED, moments=moments)
    mapped = replace(paged, trained_weights=TrainedWeightsIn.MAPPED)
    with_it, without = plan_memory(counts, engine, paged), plan_memory(counts, engine)
    assert with_it["master"] == with_it["buckets"] == 0
    assert 0 < with_it["moments"] + with_it["gradients"] < 2 * counts.total
    assert without["master"] + without["moments"] == (12 if stage else 8) * counts.total
    assert with_it["weights"] == without["weights"]
    assert plan_memory(counts, engine, mapped) == with_it | {"weights": 0.0}
    scratch = plan_scratch(counts, engine, paged)
    buckets = scratch.pop("buckets") if stage else 0.0
    assert sum(scratch.values()) == in_files * counts.total
    assert buckets == (4 * engine.bucket_elements + 8 * counts.largest if stage else 0)
    assert plan_scratch(counts, engine, mapped)["weights"] == 4 * counts.total
    assert plan_scratch(counts, engine, OffloadConfig()) == {}
    limited = replace(engine, memory_gb=1 + plan_own(OwnModel.of(BIG), engine, paged).total / 1e9)
    check_memory(BIG, limited, paged, on_cpu=False)
    with pytest.raises(ConfigError, match="engine.memory_gb: a rank needs"):
        check_memory(BIG, limited, on_cpu=False)
