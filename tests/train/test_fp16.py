"""Training in fp16: what fp32 gives within rounding, steps skipped and seen, scales that move, and resuming bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig, deepspeed_config
from adapt.train.loss_scale import LossScaleConfig
from adapt.train.optimizer_config import OptimizerConfig
from tests.support.forked_ranks import launch_ranks
from tests.support.plain_loop import plain_loop
from tests.support.ranks.fp16_cases import FITTING, INJECTED, LEAST, OBJECTIVE, STEPS, TOO_LARGE, UNDIVIDED, WITH_SHARES
from tests.support.ranks.rank_cases import plain_rows

ROUNDING = 2e-3  # of fp16: 11 bits


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once, on two ranks."""
    return launch_ranks("fp16_cases", tmp_path_factory.mktemp("fp16"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_fp16_trains_what_a_plain_fp32_loop_trains(results: dict[str, Any], stage: int) -> None:
    assert_near(results[f"stage {stage}"], plain_loop(UNDIVIDED, OBJECTIVE, plain_rows(OBJECTIVE), STEPS))
    assert results[f"stage {stage}"]["skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_training_behind_a_skipped_step_is_that_of_a_plain_loop_that_skips_it(results: dict[str, Any], stage: int) -> None:
    expected = plain_loop(UNDIVIDED, OBJECTIVE, plain_rows(OBJECTIVE), STEPS, skipped=(INJECTED,))
    del expected["history"][INJECTED - 1]["grad_norm"]
    assert_near(results[f"injected {stage}"], expected)


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold losses, norms and how far weights moved against each other, within what fp16 rounds."""
    for want, got in zip(expected["history"], found["history"], strict=True):
        for key, value in want.items():
            assert got[key] == pytest.approx(value, rel=10 * ROUNDING), key
    start = plain_loop(UNDIVIDED, OBJECTIVE, plain_rows(OBJECTIVE), 0)["weights"]
    assert distance(found["weights"], expected["weights"]) < 5 * ROUNDING * distance(start, expected["weights"])


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(torch.stack([(value - one[key]).detach().norm() for key, value in other.items()]).norm())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["injected 1", "injected 2", "injected, biases"])
def test_an_overflow_on_one_rank_skips_the_update_and_halves_the_scale(results: dict[str, Any], case: str) -> None:
    run = results[case]
    before, skipped, after = (run["steps"][step - 1] for step in (INJECTED - 1, INJECTED, INJECTED + 1))
    assert [line["skipped"] for line in run["history"]] == [float(step == INJECTED) for step in range(1, STEPS + 1)]
    assert [line["loss_scale"] for line in run["history"]] == [FITTING] * INJECTED + [FITTING / 2] * (STEPS - INJECTED)
    assert run["skipped"] == 1
    assert skipped["metrics"]["skipped"] == 1.0, "the tracker sees it too"
    assert skipped["metrics"]["loss_scale"] == FITTING
    assert "grad_norm" not in skipped["metrics"]
    assert before["state"].keys() == skipped["state"].keys()
    assert all(torch.equal(before["state"][name], skipped["state"][name]) for name in before["state"])
    assert not all(torch.equal(after["state"][name], skipped["state"][name]) for name in after["state"])
    assert [step["updates"] for step in (before, skipped, after)] == [INJECTED - 1, INJECTED - 1, INJECTED]


@pytest.mark.slow
def test_shares_in_the_gradient_are_measured_under_the_loss_scale(results: dict[str, Any]) -> None:
    expected = plain_loop(UNDIVIDED, WITH_SHARES, plain_rows(WITH_SHARES), STEPS, measures_parts=True)
    measured = [key for line in expected["history"] for key in line if key.startswith("gradient_share/")]
    assert len(measured) >= STEPS // 2
    assert_near(results["shares"], expected)


@pytest.mark.slow
def test_hysteresis_forgives_an_overflow_and_a_window_without_one_doubles_the_scale(results: dict[str, Any]) -> None:
    assert [line["loss_scale"] for line in results["forgiven"]["history"]] == [FITTING] * STEPS
    assert [line["skipped"] for line in results["forgiven"]["history"]].count(1.0) == 1
    scales = [line["loss_scale"] for line in results["grown"]["history"]]
    assert scales == [FITTING * factor for factor in (1, 1, 1, 2, 2, 4)]


@pytest.mark.slow
def test_a_run_that_was_killed_behind_skipped_steps_ends_with_the_same_bits(results: dict[str, Any]) -> None:
    whole, resumed = results["too large"], results["too large, resumed"]
    assert whole["history"][0]["loss_scale"] == TOO_LARGE
    assert 2 <= whole["skipped"] < STEPS, "some steps are skipped before the kill, and not all"
    assert len(resumed["steps"]) == STEPS - 2, "it went on from the state of step 2"
    assert resumed["history"] == whole["history"]
    for name, value in whole["steps"][-1]["state"].items():
        assert torch.equal(resumed["steps"][-1]["state"][name], value), name
    assert resumed["steps"][-1]["updates"] == STEPS - whole["skipped"]


@pytest.mark.slow
def test_an_overflow_at_the_least_scale_ends_the_run(results: dict[str, Any]) -> None:
    assert f"not finite at the least loss scale, {LEAST}" in results["at the least scale"]
    assert "use engine.precision=bf16 or fp32" in results["at the least scale"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"initial": 1000}, "initial: 1000 is not a power of 2"),
        ({"minimum": 0}, "minimum: 0 is out of range; give 1 or more"),
        ({"initial": 2, "minimum": 4}, "minimum: 4 is above"),
        ({"window": 0}, "window: 0 is out of range"),
        ({"hysteresis": 0}, "hysteresis: 0 is out of range"),
    ],
)
def test_scales_that_cannot_work_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LossScaleConfig(**settings)


def test_fp16_needs_masters() -> None:
    with pytest.raises(ConfigError, match="zero_stage: 0 keeps no fp32 masters beside fp16 weights"):
        EngineConfig(zero_stage=0, precision=Precision.FP16)


@pytest.mark.slow
def test_deepspeed_is_told_the_scale_and_results_depend_on_it_in_fp16_alone() -> None:
    scale = LossScaleConfig(initial=1 << 12, window=7, hysteresis=3, minimum=2)
    engine = EngineConfig(precision=Precision.FP16, loss_scale=scale)
    told = deepspeed_config(engine, OptimizerConfig())["fp16"]
    assert told == {
        "enabled": True, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 7, "hysteresis": 3, "min_loss_scale": 2,
    }  # fmt: skip
    assert engine.numerics().items() >= {"precision": Precision.FP16, "loss_scale": scale}.items()
    assert EngineConfig(precision=Precision.FP32, loss_scale=scale).numerics() == {"precision": Precision.FP32}
