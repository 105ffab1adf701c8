"""What an engine cannot do with a base is refused before ranks are started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapt.checkpoint.offload import OffloadConfig
from adapt.core.errors import ConfigError
from adapt.train.engine_config import EngineConfig
from adapt.train.train_config import Trained
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.stages import adaptation_checks


def test_experts_of_a_hugging_face_model_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation_checks, "weights_of", lambda base: tmp_path)
    monkeypatch.setattr(adaptation_checks, "is_hf_directory", lambda place: place == tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    base: Any = SimpleNamespace(path=tmp_path)
    with pytest.raises(ConfigError, match="no experts that ranks could share; set it to 1"):
        adaptation_checks.check_training(base, AdaptConfig(), EngineConfig(world_size=8, expert_parallel=8), OffloadConfig())
    adaptation_checks.check_training(base, AdaptConfig(), EngineConfig(world_size=8), OffloadConfig())


def test_an_adapted_sparse_base_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest says how it was trained, and not of which family it is."""
    monkeypatch.setattr(adaptation_checks, "weights_of", lambda base: tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}', encoding="utf-8")
    base: Any = SimpleNamespace(path=tmp_path, config={})
    adaptation_checks._check_foreign_trained(base, AdaptConfig(trains=Trained.EXPERTS))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="is a dense model; use all, dense or head"):
        adaptation_checks._check_foreign_trained(base, AdaptConfig(trains=Trained.EXPERTS))
