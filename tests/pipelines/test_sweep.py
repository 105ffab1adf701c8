"""Sweeps share what their points have in common, and leave one tracked run per training, by rank 0 only."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.core.artifacts import open_artifact
from tests.support.command_line import SMALLEST, run


@pytest.mark.slow
def test_a_sweep_trains_the_tokenizer_once_and_tracks_each_adaptation_once(tmp_path: Path) -> None:
    done = run(
        "run", "-m", *SMALLEST, "task=demo_reviews,demo_topics", "seed=1,2", "tracker=wandb", "engine.world_size=2",
        "pretrain.steps=4", "continue_pretrain.epochs=1", "stages=[tokenizer,pretrain,pseudo_label,continue_pretrain]",
        f"run.dir={tmp_path}", "run.name=sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = sorted(path for path in (tmp_path / "sweep").iterdir() if (path / "pretrain").exists())
    assert len(points) == 4
    tokenizers = {open_artifact((point / "tokenizer").resolve()).path for point in points}
    bases = {open_artifact((point / "pretrain").resolve()).path for point in points}
    assert len(tokenizers) == 1
    assert len(bases) == 2, "one base for each seed"
    adapted = {path.resolve() for point in points for path in (point / "continue_pretrain").iterdir()}
    assert len(adapted) == 4
    tracked = list((tmp_path / "sweep" / "wandb").glob("offline-run-*"))
    assert len(tracked) == len(adapted) + len(bases)
    assert len({path.name.rsplit("-", 1)[-1] for path in tracked}) == len(tracked), "run ids are unique"
