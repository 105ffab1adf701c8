"""The benchmark of labels of one token: every way gives the same sums, and texts are read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.model.inputs import ModelInputs, ModelOutput
from pipelines.bench import one_token
from pipelines.bench.contract import all_benchmarks
from tests.support.hf_checkpoints import make_model


def test_every_way_gives_the_same_sums_and_reads_a_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(make_model(tmp_path, "llama", 300, max_position_embeddings=128))
    examples = [one_token._example(6, index, 300) for index in range(5)]
    tokens: list[int] = []
    heads: list[int] = []
    forward, logits = model.forward, model.logits

    def counted(inputs: ModelInputs) -> ModelOutput:
        tokens.append(int((inputs.documents_BT > 0).sum()))
        return forward(inputs)

    def heads_of(hidden: torch.Tensor) -> torch.Tensor:
        heads.append(hidden.flatten(0, -2).shape[0])
        return logits(hidden)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(model, "logits", heads_of)
    ways = one_token.ways_of(model, None, examples)
    ours = ways["tree"]()
    assert sum(tokens) == sum(len(one_token.text_of(example[0])) for example in examples)
    assert sum(heads) == len(examples)
    assert np.abs(np.asarray(ours) - ways["like harness"]()).max() < 1e-4


def test_it_runs_on_a_checkpoint_and_refuses_a_missing_one(tmp_path: Path) -> None:
    run = all_benchmarks().get("one_token").run
    make_model(tmp_path / "model", "llama", 300, max_position_embeddings=128)
    rows = run({"checkpoint": str(tmp_path / "model"), "rows": "3", "rounds": "1"})
    assert [row["labels"] for row in rows] == [2, 6]
    with pytest.raises(ConfigError, match="no such directory"):
        run({"checkpoint": str(tmp_path / "none")})
