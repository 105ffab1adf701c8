"""Settings of the engine that cannot go together are refused with what to use instead."""

from __future__ import annotations

import pytest

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig


def test_zero_1_in_bf16_is_refused_and_in_other_formats_taken() -> None:
    with pytest.raises(ConfigError, match="zero_stage: 1 in bf16 .* use 2, or fp32"):
        EngineConfig(zero_stage=1, precision=Precision.BF16)
    assert EngineConfig(zero_stage=1, precision=Precision.FP16).zero_stage == 1
    assert EngineConfig(zero_stage=1).zero_stage == 1
