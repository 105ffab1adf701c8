"""Exports that are deltas take turns in one predictor, on one base that is read once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import pseudo_label
from adapt.core.errors import CheckpointError
from adapt.model.lora_config import LoraConfig
from pipelines.config.locations import conf_dir
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.labelling import ScoringConfig
from pseudo_label.predictor import PredictorSpec, save_spec
from pseudo_label.tasks import load_task
from tests.support.command_line import FP32_SCORES
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.lora_cases import saved_delta, with_lora

ROWS = {
    "demo_reviews": [{"sentence": "退货很麻烦，客服不理人"}, {"sentence": "很好用，下次还买"}],
    "demo_topics": [{"sentence": "女排三比零横扫对手晋级决赛"}],
}


def export_of(place: Path, base: Path, task: str, seed: int) -> Path:
    """Write a task's export as a delta, with changes of its own."""
    saved_delta(place, with_lora(base, LoraConfig(rank=2), seed), base)
    decision = Decision(method=Method.RAW, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=0)
    spec = PredictorSpec(
        task=load_task(task, [conf_dir() / "task"]), scoring=ScoringConfig(prompts=["reference"]), decision=decision
    )
    save_spec(place, spec)
    return place


def test_exports_of_several_tasks_answer_as_each_does_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    exports = {task: export_of(tmp_path / task, base, task, seed) for seed, task in enumerate(ROWS)}
    alone = {task: pseudo_label.load(place, FP32_SCORES).predict(ROWS[task]) for task, place in exports.items()}
    predictor = pseudo_label.load(exports["demo_reviews"], FP32_SCORES)
    monkeypatch.setattr("adapt.checkpoint.delta.load_hf_model", None)  # the base is not read again
    for task in ("demo_topics", "demo_reviews", "demo_topics"):
        predictor.switch_to(exports[task])
        assert predictor.spec.task.name == task
        assert predictor.predict(ROWS[task]) == alone[task]


def test_what_cannot_take_turns_is_refused_and_the_present_export_goes_on(tmp_path: Path) -> None:
    bases = [make_checkpoint(tmp_path / "a", "llama"), make_checkpoint(tmp_path / "b", "llama", intermediate_size=40)]
    first, other = (export_of(tmp_path / f"{base.name}-export", base, "demo_reviews", 0) for base in bases)
    whole = shutil.copytree(bases[0], tmp_path / "whole")
    shutil.copyfile(first / "predictor.json", whole / "predictor.json")
    predictor = pseudo_label.load(first, FP32_SCORES)
    answers = predictor.predict(ROWS["demo_reviews"])
    for place, words in ((other, "is another one"), (whole, "is no delta"), (bases[0], "is not an export")):
        with pytest.raises(CheckpointError, match=words):
            predictor.switch_to(place)
        assert predictor.predict(ROWS["demo_reviews"]) == answers
    with pytest.raises(CheckpointError, match="what is open: is no delta"):
        pseudo_label.load(whole, FP32_SCORES).switch_to(first)
