"""Training in bf16: ranks sum gradients as the settings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_loop import launch_ranks
from rounded_cases import CASES

from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig, GradientCommunication, deepspeed_config
from adapt.train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once, on two ranks."""
    return launch_ranks("rounded_cases.py", tmp_path_factory.mktemp("rounded"), 2)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_summed_in_fp32_unless_told_otherwise(results: dict[str, Any], name: str) -> None:
    found, wanted = results[f"{name}, gradients"]["found"], results[f"{name}, gradients"]["wanted"]
    same = {key for key, gradient in wanted.items() if torch.equal(found[key].reshape(gradient.shape), gradient)}
    if CASES[name].gradient_communication is GradientCommunication.FP32:
        assert same == set(wanted)
    else:
        assert not any(".router." in key or "qkv.weight" in key for key in same)
        for key, gradient in wanted.items():
            assert torch.allclose(
                found[key].reshape(gradient.shape), gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max())
            ), key


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("how", list(GradientCommunication))
def test_deepspeed_is_told_how_gradients_are_summed(precision: Precision, how: GradientCommunication) -> None:
    engine = EngineConfig(precision=precision, gradient_communication=how)
    told = deepspeed_config(engine, OptimizerConfig())["communication_data_type"]
    assert told == ("fp32" if how is GradientCommunication.FP32 else precision.value)


def test_results_depend_on_how_gradients_are_summed_where_weights_are_rounded() -> None:
    by_model = {p: EngineConfig(precision=p, gradient_communication=GradientCommunication.MODEL).numerics() for p in Precision}
    for precision, numerics in by_model.items():
        is_same = numerics == EngineConfig(precision=precision).numerics()
        assert is_same is (precision is Precision.FP32)
