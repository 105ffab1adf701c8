"""The paging benchmark: options, refusals, what is left behind; what it measures is never asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.__main__ import main
from pipelines.bench.paging import _model


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["parts=none"], "give some of: write, read, ranks, score"),
        (["model=17b"], "model=17b: unknown"),
        (["model=hf"], "has no sizes of its own"),
        (["layers=99"], "16b_pyramid has 24"),
        (["dir=/nowhere/at/all"], "no such directory"),
        (["parts=write", "gb=40"], "needs 80.0 GB of disk"),
        (["parts=score", "most_gb=1"], "scale down by gb= and layers="),
    ],
)
def test_a_wrong_call_is_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paging", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_model_is_cut_to_its_last_expert_counts() -> None:
    config = _model({"layers": "6"})
    assert (config.n_layers, config.experts, config.even_routing) == (6, [32, 64, 64], True)
    config.validate()


@pytest.mark.slow
def test_every_part_runs_and_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["gb=1", "rounds=1", "model=tiny", "layers=2", "rows=2", "columns=8", f"dir={tmp_path}"]
    assert main(["paging", *options]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("write", "read", "ranks", "score 2 x 8"))
    assert not list(tmp_path.iterdir())
