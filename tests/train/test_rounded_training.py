"""Training in bf16: routers stay in fp32 whatever the rest is rounded to, and ranks sum gradients as the settings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapt.core.precision import FORMATS, Precision
from adapt.model.gpt import GPT, materialize
from adapt.train.engine_config import EngineConfig, GradientCommunication, deepspeed_config
from adapt.train.optimizer import OptimizerConfig
from adapt.train.trainable import Trained
from tests.support.forked_ranks import launch_ranks
from tests.support.ranks.rounded_cases import CASES, COMPARED, RESUMED

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once, on two ranks."""
    return launch_ranks("rounded_cases", tmp_path_factory.mktemp("rounded"), 2)


@pytest.mark.parametrize("name", CASES)
def test_routers_are_fp32_and_everything_else_is_rounded(results: dict[str, Any], name: str) -> None:
    formats = {key: weight.dtype for key, weight in results[f"{name}, read"]["read"].items()}
    assert {key: FP32 if ".router." in key else BF16 for key in formats} == formats


@pytest.mark.parametrize("name", CASES)
def test_forward_reads_a_routers_master_to_the_bit(results: dict[str, Any], name: str) -> None:
    read, masters = results[f"{name}, read"]["read"], results[f"{name}, read"]["masters"]
    for key, weight in read.items():
        if ".router." in key:
            assert torch.equal(weight, masters[key]), key
        elif ".experts." not in key:  # what a rank reads of shared experts is its own part
            assert torch.equal(weight, masters[key].to(BF16)), key


@pytest.mark.parametrize("name", [name for name, (*_, trains) in CASES.items() if trains.has_routers])
def test_an_update_too_small_for_bf16_reaches_the_router(results: dict[str, Any], name: str) -> None:
    start = dict(materialize(GPT(CASES[name][0]), seed=3).named_parameters())
    for key, weight in results[f"{name}, read"]["read"].items():
        if key.endswith("router.weight"):
            assert not torch.equal(weight, start[key]), key
            assert not torch.equal(weight, weight.to(BF16).float()), key


def test_routers_that_are_not_trained_stay_to_the_bit(results: dict[str, Any]) -> None:
    name = "all but routers"
    assert CASES[name][2] is Trained.DENSE
    start = dict(materialize(GPT(CASES[name][0]), seed=3).named_parameters())
    routers = {key: weight for key, weight in results[f"{name}, read"]["read"].items() if ".router." in key}
    assert routers
    assert all(torch.equal(weight, start[key]) for key, weight in routers.items())


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_are_summed_in_fp32_unless_told_otherwise(results: dict[str, Any], name: str) -> None:
    found, wanted = results[f"{name}, gradients"]["found"], results[f"{name}, gradients"]["wanted"]
    same = {key for key, gradient in wanted.items() if torch.equal(found[key].reshape(gradient.shape), gradient)}
    if CASES[name][1].gradient_communication is GradientCommunication.FP32:
        assert same == set(wanted)
    else:
        assert not any(".router." in key or "qkv.weight" in key for key in same)
        for key, gradient in wanted.items():
            assert torch.allclose(
                found[key].reshape(gradient.shape), gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max())
            ), key


def test_a_killed_run_in_bf16_ends_with_the_bits_of_one_that_was_not(results: dict[str, Any]) -> None:
    assert results["resumed"]["history"] == results["whole"]["history"]
    for key, value in results["whole"]["weights"].items():
        assert torch.equal(results["resumed"]["weights"][key], value), (RESUMED, key)


def test_routers_alone_in_fp16_are_refused(results: dict[str, Any]) -> None:
    assert "fp16 scales the loss of fp16 weights; routers, which alone are trained, are fp32" in results["routers alone in fp16"]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("how", list(GradientCommunication))
def test_deepspeed_is_told_how_gradients_are_summed(precision: Precision, how: GradientCommunication) -> None:
    engine = EngineConfig(precision=precision, gradient_communication=how)
    told = deepspeed_config(engine, OptimizerConfig())["communication_data_type"]
    assert told == ("fp32" if how is GradientCommunication.FP32 else precision.value)


def test_results_depend_on_how_gradients_are_summed_where_weights_are_rounded() -> None:
    by_model = {p: EngineConfig(precision=p, gradient_communication=GradientCommunication.MODEL).numerics() for p in FORMATS}
    for precision, numerics in by_model.items():
        is_same = numerics == EngineConfig(precision=precision).numerics()
        assert is_same is (precision is Precision.FP32)
