"""What an engine cannot do with a base is refused before ranks are started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapt.checkpoint.offload import OffloadConfig
from adapt.core.errors import ConfigError
from adapt.train.engine_config import EngineConfig
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.stages import adaptation_checks


def test_experts_of_a_hugging_face_model_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation_checks, "weights_of", lambda base: tmp_path)
    monkeypatch.setattr(adaptation_checks, "is_hf_directory", lambda place: place == tmp_path)
    base: Any = None
    with pytest.raises(ConfigError, match="no experts that ranks could share; set it to 1"):
        adaptation_checks.check_training(base, AdaptConfig(), EngineConfig(world_size=8, expert_parallel=8), OffloadConfig())
    adaptation_checks.check_training(base, AdaptConfig(), EngineConfig(world_size=8), OffloadConfig())
