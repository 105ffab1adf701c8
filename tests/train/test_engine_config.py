"""Settings of the engine that cannot go together are refused with what to use instead."""

from __future__ import annotations

import pytest

from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.optimizer_config import Algorithm, OptimizerConfig


def test_zero_1_in_bf16_is_refused_and_in_other_formats_taken() -> None:
    with pytest.raises(ConfigError, match="zero_stage: 1 in bf16 .* use 2, or fp32"):
        EngineConfig(zero_stage=1, precision=Precision.BF16)
    assert EngineConfig(zero_stage=1, precision=Precision.FP16).zero_stage == 1
    assert EngineConfig(zero_stage=1).zero_stage == 1


def test_a_paged_optimizer_is_refused_for_lamb_and_bf16_moments_in_memory() -> None:
    lamb, engine = OptimizerConfig(algorithm=Algorithm.LAMB), EngineConfig(zero_stage=0)
    with pytest.raises(ConfigError, match=r"^offload.optimizer=paged: updates block by block, and optimizer.algorithm=lamb"):
        check_optimizer(engine, lamb, OffloadConfig(optimizer=OptimizerIn.PAGED))
    check_optimizer(engine, lamb, OffloadConfig())
    check_optimizer(engine, OptimizerConfig(), OffloadConfig(optimizer=OptimizerIn.PAGED))
    host = OffloadConfig(optimizer=OptimizerIn.CPU)
    with pytest.raises(ConfigError, match=r"^offload.optimizer=cpu: moves the partitions .* use engine.zero_stage=1 or 2"):
        check_optimizer(engine, OptimizerConfig(), host)
    check_optimizer(EngineConfig(zero_stage=1), OptimizerConfig(), host)
    with pytest.raises(ConfigError, match="moments: bf16 is for paged moments; set offload.optimizer=paged, or fp32"):
        OffloadConfig(moments=MomentFormat.BF16)
