"""The moments of a training step: what is there at the same time, and which blocks a CPU's allocator gives back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapt.core.limits import LARGE_BLOCK
from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig
from adapt.train.step_moments import InFiles, Passing, TrainedTensors, combined, fullest, step_moments

ENGINE = EngineConfig(precision=Precision.FP32, bucket_elements=1000)
SIZES = TrainedTensors(sizes=[6000, 4000], total=10_000)
PASSING = Passing(kept=50_000.0, logits=7000.0, is_chunked=False, layer=900.0, layer_block=500.0, table=24_000.0)
MEMORY = {"weights": 40_000.0, "gradients": 40_000.0, "master": 40_000.0, "moments": 80_000.0, "buckets": 8000.0}


def at(engine: EngineConfig, *, accumulates: bool = False, on_cpu: bool = False) -> dict[str, float]:
    found = step_moments(SIZES, PASSING, engine, accumulates=accumulates, opens_with_copies=on_cpu)
    return fullest(found, on_cpu)


def test_activations_and_a_whole_gradient_are_never_there_together() -> None:
    found = at(ENGINE)
    assert found["loss"] == PASSING.kept + 2 * PASSING.logits
    assert found["backward"] == PASSING.kept + PASSING.layer + PASSING.table
    assert found["last layer"] == PASSING.layer + 2 * PASSING.table + 4 * (1000 + 10_000)
    assert found["exchange"] == 4 * (1000 + 10_000)
    assert found["update"] == 4 * 2 * 10_000


def test_a_bucket_fills_while_most_activations_are_still_there() -> None:
    part = 1000 / 10_000
    expected = PASSING.kept * (1 - part) + PASSING.layer + PASSING.table + 4 * 1000 + 4 * 10_000 * part
    assert at(ENGINE)["first bucket"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("engine", "earlier", "at_exchange"),
    [
        (ENGINE, 40_000, 40_000),
        (replace(ENGINE, world_size=2), 20_000, 20_000),
        (replace(ENGINE, zero_stage=0), 40_000, 0),
        (replace(ENGINE, precision=Precision.BF16), 40_000, 0),
    ],
)
def test_micro_batches_before_leave_a_partition_of_gradients(engine: EngineConfig, earlier: int, at_exchange: int) -> None:
    once, more = at(engine), at(engine, accumulates=True)
    assert more["loss"] - once["loss"] == more["backward"] - once["backward"] == earlier
    assert more["exchange"] - once["exchange"] == at_exchange
    assert more["update"] == once["update"]


def test_one_rank_without_partitions_has_neither_buckets_nor_copies() -> None:
    alone, two = replace(ENGINE, zero_stage=0), replace(ENGINE, zero_stage=0, world_size=2)
    assert at(alone)["exchange"] == at(alone)["update"] == 4 * 10_000
    assert at(two)["exchange"] == 2 * 4 * 10_000


def test_a_rounded_model_is_updated_without_a_copy_of_its_gradients_and_opened_with_exact_ones() -> None:
    found = at(replace(ENGINE, precision=Precision.BF16), on_cpu=True)
    rounded, exact = (step_moments(SIZES, None, replace(ENGINE, precision=p), accumulates=False, opens_with_copies=True)
                      for p in (Precision.BF16, Precision.FP32))  # fmt: skip
    assert sum(n_bytes for n_bytes, _ in rounded["update"]) == 4 * 10_000
    assert sum(n_bytes for n_bytes, _ in rounded["opening"]) == (4 + 4) * 10_000
    assert sum(n_bytes for n_bytes, _ in exact["opening"]) == 4 * 10_000
    assert set(found) > {"opening", "loss", "update"}


def test_masters_are_made_in_memory_before_they_go_to_files_and_stage_0_opens_without_copies() -> None:
    def opening(engine: EngineConfig, in_files: InFiles | None) -> float:
        found = step_moments(SIZES, None, engine, accumulates=False, opens_with_copies=True, in_files=in_files)
        return sum(n_bytes for n_bytes, _ in found["opening"])

    assert opening(ENGINE, InFiles(handed=0.0, weights=False)) == (4 + 2 * 4) * 10_000
    assert opening(ENGINE, InFiles(handed=0.0, weights=True)) == 0
    assert opening(replace(ENGINE, zero_stage=0), None) == 0


@pytest.mark.parametrize(
    ("engine", "apart", "gathered"),
    [
        (ENGINE, 0, 0),
        (replace(ENGINE, world_size=2), 0, 4 * 10_000),
        (replace(ENGINE, world_size=2, precision=Precision.BF16), 0, 2 * 10_000),
        (replace(ENGINE, world_size=2, expert_parallel=2), 7000, 4 * 3000),
        (replace(ENGINE, world_size=4, expert_parallel=2), 7000, 4 * 7000),
        (replace(ENGINE, world_size=2, zero_stage=0), 0, 0),
    ],
)
def test_ranks_on_cpus_gather_updated_weights_beside_the_heap(engine: EngineConfig, apart: int, gathered: int) -> None:
    plan = combined(MEMORY, replace(SIZES, apart=apart), PASSING, engine, on_cpu=True, batch_rows=None, scratch=0.0)
    assert plan.moments["gather"] - min(plan.moments.values()) == pytest.approx(gathered)


def test_on_a_cpu_small_blocks_of_an_earlier_moment_are_still_held_and_large_ones_are_not() -> None:
    small, large = LARGE_BLOCK - 1, LARGE_BLOCK
    moments = {"early": [(100.0, small), (1000.0, large)], "late": [(30.0, small), (500.0, large), (400.0, large)]}
    on_cpu, on_gpu = fullest(moments, on_cpu=True), fullest(moments, on_cpu=False)
    assert on_gpu == {"early": 1100.0, "late": 930.0}
    assert on_cpu["late"] - on_gpu["late"] == pytest.approx(on_cpu["early"] - on_gpu["early"] + 70.0)
    assert on_cpu["early"] > on_gpu["early"], "small blocks leave holes"
    assert fullest({"opening": moments["early"]}, on_cpu=True) == {"opening": 1100.0}, "blocks that were just read leave none"


def test_the_peak_is_what_lasts_with_the_fullest_moment() -> None:
    plan = combined(MEMORY, SIZES, PASSING, ENGINE, on_cpu=False, batch_rows=None, scratch=0.0)
    lasting = MEMORY["weights"] + MEMORY["master"] + MEMORY["moments"]
    assert plan.fullest == "last layer"
    assert plan.total == lasting + at(ENGINE)["last layer"] < lasting + sum(plan.memory.values())
    on_cpu = combined(MEMORY, SIZES, PASSING, ENGINE, on_cpu=True, batch_rows=None, scratch=0.0)
    assert on_cpu.total >= plan.total + on_cpu.memory["process"]


def test_fewer_rows_take_less_but_the_gradient_of_the_token_table() -> None:
    half = PASSING.times(0.5)
    assert (half.kept, half.logits, half.layer, half.table) == (25_000, 3500, 450, PASSING.table)
